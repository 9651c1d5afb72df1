"""Further nodes on a path: unbiased however many draws there are, and taken where they lower the variance most."""

import itertools

import numpy as np
import pytest

from opdscope.core.divergences import reverse_kl_signal
from opdscope.core.expansion import best_draws, drawing_variance, refined_sample
from opdscope.core.sampling import inclusion_probabilities, node_importance, systematic_sample
from opdscope.models.exact import ReasoningWorld, TreeWorld, World

STARTS = (np.arange(4000) + 0.5) / 4000
"""A grid of starts: the mean over it is that over all starts, but for the ends of intervals between two grid points."""


def exact_path(world: World, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Natural gains of a teacher at every node of a student's response, and inclusion probabilities of six nodes."""
    student, following, success = world.student(0), world.next_states(), world.success(0)
    probs, signal = np.exp(student), reverse_kl_signal(student, world.teacher("good", 0))
    centred = signal - np.sum(probs * signal, axis=-1, keepdims=True)
    rng, states = np.random.default_rng(seed), [0]
    for position in range(len(student) - 1):
        token = rng.choice(student.shape[-1], p=probs[position, states[-1]] / probs[position, states[-1]].sum())
        states.append(int(following[position, states[-1], token]))
    at = np.arange(len(student)), np.array(states)
    gains = np.sum(probs[at] * success[at] * centred[at], axis=-1)
    divergence = np.maximum(-np.sum(probs[at] * signal[at], axis=-1), 0.0)
    importance = node_importance(np.sum(probs[at] ** 2, axis=-1), divergence[None])
    return gains, inclusion_probabilities(importance, 6, 0.25)


@pytest.mark.parametrize("draws", [1, 2, 3, 8])
@pytest.mark.parametrize("world", [ReasoningWorld(), TreeWorld()], ids=["chains", "tree"])
def test_sums_over_all_draws_have_the_mean_of_the_whole_path(world: World, draws: int) -> None:
    gains, inclusion = exact_path(world, 1)
    sums = []
    for start in STARTS:
        positions, divisors = refined_sample(inclusion, float(start), draws)
        sums.append(np.sum(gains[positions] / divisors))
    # each of a draw's ticks errs by at most a grid step, in terms of at most the largest term
    assert abs(np.mean(sums) - gains.sum()) <= 6 / len(STARTS) * np.max(np.abs(gains / inclusion))
    assert np.std(sums) > 1e-4 or inclusion.min() == 1.0  # a single start is far from the mean where not every position is a node


def test_the_first_draw_is_among_all_draws_and_more_draws_err_less() -> None:
    gains, inclusion = exact_path(ReasoningWorld(), 2)
    spread = []
    for draws in (1, 2, 4):
        sums = []
        for start in STARTS[::20]:
            positions, divisors = refined_sample(inclusion, float(start), draws)
            assert set(systematic_sample(inclusion, float(start))) <= set(positions)
            sums.append(np.sum(gains[positions] / divisors))
        spread.append(np.var(sums))
    assert spread[1] < 0.75 * spread[0]
    assert spread[2] < 0.75 * spread[1]


def test_the_variance_of_a_draw_is_estimated_without_bias_for_terms_in_no_order() -> None:
    noise, values = 0.3, (0.0, 1.0, 4.0)
    certain = np.array([False, True, False, False])
    found = [
        drawing_variance(np.array(terms) + np.sqrt(noise) * np.array(errors), np.full(4, noise), certain)
        for terms in itertools.product(values, repeat=4)
        for errors in itertools.product((-1.0, 1.0), repeat=4)  # variance one, times the noise
    ]
    # three independent terms that are not certain
    np.testing.assert_allclose(np.mean(found), 3 * np.var(values), rtol=1e-12)
    assert drawing_variance(np.array([1.0, 2.0]), np.zeros(2), np.array([True, False])) == 0.0


def test_nodes_are_drawn_as_often_as_leaves_the_least_variance() -> None:
    noise = [0.1, 0.2, 0.45, 0.9]
    for between in (-1.0, 0.0, 0.3, 1.0, 10.0):
        best = best_draws(between, noise)
        remaining = [(max(between, 0.0) + n) / (k + 1) for k, n in enumerate(noise)]
        assert remaining[best - 1] == min(remaining)
    assert best_draws(10.0, [0.1, np.inf, np.inf]) == 1
