"""Gains from ordinary rollouts, in a world small enough to enumerate: vocabulary 3, length 3, every sequence right or wrong."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient, ideal_gradient
from opdscope.core.screening import StudentRows, reduce_rows, screening_gain, teacher_pushes
from opdscope.errors import ShapeError

OBJECTIVES = ("reverse_kl", "forward_kl", "generalized_jsd(0.5)")
VOCAB, LENGTH, NUM_SETS, NUM_ROLLOUTS = 3, 3, 20_000, 4
PREFIXES = [prefix for depth in range(LENGTH) for prefix in product(range(VOCAB), repeat=depth)]
SEQUENCES = list(product(range(VOCAB), repeat=LENGTH))
ROWS = np.array([[PREFIXES.index(sequence[:depth]) for depth in range(LENGTH)] for sequence in SEQUENCES])
TAKEN = np.array(SEQUENCES)

PATHS = {
    "reverse_kl": lambda p, q, eta: p ** (1 - eta) * q**eta,
    "forward_kl": lambda p, q, eta: (1 - eta) * p + eta * q,
    "generalized_jsd(0.5)": lambda p, q, eta: p * ((p + q) / (2 * p)) ** (eta / 2),
}


def success_rate(probs, rewards):
    """Success rate of a student with these next-token distributions at every prefix."""
    normalized = probs / probs.sum(-1, keepdims=True)
    return np.sum(np.prod(normalized[ROWS, TAKEN], axis=-1) * rewards)


@dataclass(frozen=True)
class World:
    student: np.ndarray
    teacher: np.ndarray
    rewards: np.ndarray

    def derivative(self, path, step=1e-4):
        """Central difference of the success rate as all nodes move along a path at once."""
        return (success_rate(path(step), self.rewards) - success_rate(path(-step), self.rewards)) / (2 * step)

    def success(self):
        """Success of each token at each prefix, when the student finishes."""
        chances = self.student[ROWS, TAKEN]
        result = np.zeros((len(PREFIXES), VOCAB))
        for (row, depth), token in zip([(ROWS[i, d], d) for i in range(len(SEQUENCES)) for d in range(LENGTH)], TAKEN.ravel(), strict=True):
            index = np.flatnonzero((ROWS[:, depth] == row) & (TAKEN[:, depth] == token))
            result[row, token] = np.sum(np.prod(chances[index, depth + 1 :], axis=-1) * self.rewards[index])
        return result

    def visits(self):
        """Chance that a rollout passes each prefix."""
        chances = np.array(
            [np.prod([self.student[PREFIXES.index(prefix[:d]), prefix[d]] for d in range(len(prefix))]) for prefix in PREFIXES]
        )
        return chances[:, None]


@pytest.fixture(scope="module")
def world():
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(2, len(PREFIXES), VOCAB))
    student, teacher = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return World(student, teacher, generator.integers(0, 2, size=len(SEQUENCES)).astype(float))


@pytest.fixture(scope="module")
def pushes(world):
    """Natural and Euclidean push of every sequence for every objective, [6, sequence], through `reduce_rows` as the pipeline does it."""
    student = StudentRows.of(np.log(world.student))
    result = []
    for objective in OBJECTIVES:
        tables = [reduce_rows(student, np.log(world.teacher), np.full(len(PREFIXES), token), objective) for token in range(VOCAB)]
        for name in ("taken_signal", "taken_gradient"):
            table = np.stack([getattr(rows, name) for rows in tables], axis=-1)
            result.append(
                teacher_pushes(
                    np.concatenate([table[row, taken] for row, taken in zip(ROWS, TAKEN, strict=True)]),
                    np.array([len(row) for row in ROWS]),
                )
            )
    return np.array(result)


def exact_gains(world):
    """The six true gains, in the order of `pushes`, from the definition: sums over nodes of covariances and inner products."""
    success, visits, gains = world.success(), world.visits(), []
    for objective in OBJECTIVES:
        f = signal_of(objective)(np.log(world.student), np.log(world.teacher))
        ideal = ideal_gradient(world.student, success)
        gains.append(np.sum(visits * ideal * f))
        gains.append(np.sum(visits * ideal * distillation_gradient(np.log(world.student), np.log(world.teacher), objective)))
    return np.array(gains)


@pytest.fixture(scope="module")
def simulated(world):
    """Many questions' worth of rollouts: indices of sequences, [set, rollout]."""
    chances = np.prod(world.student[ROWS, TAKEN], axis=-1)
    return np.random.default_rng(11).choice(len(SEQUENCES), size=(NUM_SETS, NUM_ROLLOUTS), p=chances / chances.sum())


def test_sum_over_nodes_is_the_derivative_of_the_success_rate(world):
    exact = exact_gains(world)
    for index, objective in enumerate(OBJECTIVES):
        gradient = distillation_gradient(np.log(world.student), np.log(world.teacher), objective)
        natural = world.derivative(lambda eta, path=PATHS[objective]: path(world.student, world.teacher, eta))
        euclidean = world.derivative(lambda eta, d=gradient: world.student * np.exp(eta * d))
        # truncation step² = 1e-8 times a third derivative of order (3 · |f|)³ ≤ 1000; rounding 1e-12
        np.testing.assert_allclose(exact[2 * index : 2 * index + 2], [natural, euclidean], rtol=0, atol=1e-5)


def test_expectation_over_all_sequences_is_the_exact_gain(world, pushes):
    chances = np.prod(world.student[ROWS, TAKEN], axis=-1)
    np.testing.assert_allclose(pushes @ chances, 0.0, atol=1e-14)  # a score function has mean zero
    np.testing.assert_allclose(pushes @ (chances * world.rewards), exact_gains(world), rtol=0, atol=1e-14)


def test_screening_gain_is_unbiased_and_a_full_mean_baseline_is_caught(world, pushes, simulated):
    exact = exact_gains(world)
    estimates = np.array([screening_gain(world.rewards[index], pushes[:, index]) for index in simulated])
    standard_error = estimates.std(axis=0) / np.sqrt(NUM_SETS)
    # six comparisons at four standard errors: wrong by chance once in 2,600
    assert np.all(np.abs(estimates.mean(axis=0) - exact) < 4 * standard_error)

    rewards = world.rewards[simulated]
    full_mean = np.mean((rewards - rewards.mean(axis=1, keepdims=True)) * pushes[:, simulated], axis=-1).T
    # R - R̄ is (n-1)/n of R - b: the mutation loses a quarter of the signal with four rollouts...
    np.testing.assert_allclose(full_mean, estimates * (NUM_ROLLOUTS - 1) / NUM_ROLLOUTS, rtol=0, atol=1e-13)
    # ...which this very test would see
    assert np.any(np.abs(full_mean.mean(axis=0) - exact) > 8 * standard_error)


def test_screening_gain_is_the_sample_covariance():
    generator = np.random.default_rng(0)
    outcomes, pushes = generator.integers(0, 2, size=9).astype(float), generator.normal(size=(2, 3, 9))
    expected = [[np.cov(outcomes, push)[0, 1] for push in row] for row in pushes]
    np.testing.assert_allclose(screening_gain(outcomes, pushes), expected, rtol=0, atol=1e-14)


def test_unverifiable_rollouts_are_left_out():
    outcomes, pushes = np.array([1.0, np.nan, 0.0, 1.0]), np.array([[0.3, np.nan, -0.2, 0.1], [1.0, 50.0, 2.0, 3.0]])
    keep = np.array([0, 2, 3])
    np.testing.assert_array_equal(screening_gain(outcomes, pushes), screening_gain(outcomes[keep], pushes[:, keep]))


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_equal_outcomes_give_exactly_zero(level, count):
    pushes = np.random.default_rng(count).normal(size=(2, count))
    np.testing.assert_array_equal(screening_gain(np.full(count, level), pushes), 0.0)


def test_fewer_than_two_verified_rollouts_are_undefined():
    assert np.isnan(screening_gain(np.array([1.0, np.nan]), np.ones((3, 2)))).tolist() == [True] * 3
    assert np.isnan(screening_gain(np.array([]), np.array([])))


def test_a_constant_push_has_no_gain():
    outcomes = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert abs(screening_gain(outcomes, np.full(5, 1e3))) < 1e-12  # rounding of 1e3 · 1e-16


def test_several_questions_at_once_are_screened_like_each_alone():
    source = np.random.default_rng(5)
    outcomes = np.where(source.random((4, 9)) < 0.2, np.nan, (source.random((4, 9)) < 0.5).astype(float))
    pushes = source.normal(size=(2, 3, 4, 9))
    alone = np.stack([screening_gain(outcomes[q], pushes[:, :, q]) for q in range(4)], axis=-1)
    np.testing.assert_allclose(screening_gain(outcomes, pushes), alone, atol=1e-15)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ShapeError, match=r"expected one push per outcome, shape \(3,\) or more axes before it, found \(4, 2\)"):
        screening_gain(np.zeros(3), np.zeros((4, 2)))


def test_pushes_are_summed_in_float64():
    values = np.full(1_000, 0.1, dtype=np.float32)
    np.testing.assert_allclose(teacher_pushes(values, np.array([len(values), 0])), [1_000 * float(np.float32(0.1)), 0.0], rtol=1e-13)
