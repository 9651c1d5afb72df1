"""GRPO, distillation and their mix against brute force: all groups of outcomes, all responses of a small tree, and a search over mixes."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdscope.core.divergences import reverse_kl_signal
from opdscope.core.gradients import distillation_gradient
from opdscope.core.mixing import (
    GroupAdvantage,
    best_share,
    fisher_moments,
    group_advantage,
    mix,
    mix_alignment,
    rl_signals,
    sampled_moments,
)
from opdscope.errors import ShapeError

VOCABULARY, DEPTH = 3, 3
STUDENT = np.array([0.5, 0.25, 0.25])


@pytest.mark.parametrize("scaled", [True, False])
def test_the_mean_advantage_is_that_of_all_groups_as_trl_computes_it(scaled: bool) -> None:
    rate, size = 0.3, 5
    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for group in itertools.product([0, 1], repeat=size):
        rewards = np.array(group, dtype=float)
        advantages = rewards - rewards.mean()
        if scaled:
            advantages /= np.std(rewards, ddof=1) + 1e-4
        chance = np.prod(np.where(rewards == 1, rate, 1 - rate))
        for own, advantage in zip(group, advantages, strict=True):
            sums[own][0] += chance * advantage
            sums[own][1] += chance
    found = group_advantage(np.array(rate), size, scaled)
    np.testing.assert_allclose(found.correct, sums[1][0] / sums[1][1], rtol=1e-12)
    np.testing.assert_allclose(found.incorrect, sums[0][0] / sums[0][1], rtol=1e-12)


def test_without_scaling_the_expected_gradient_is_the_ideal_one_on_every_question() -> None:
    found = group_advantage(np.linspace(0, 1, 11), 8, scale_rewards=False)
    np.testing.assert_allclose(found.correct - found.incorrect, 1 - 1 / 8, rtol=1e-12)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        group_advantage(np.array(0.5), 1)


@dataclass
class Tree:
    """All responses of up to three tokens, each as often as its probability says, so that sample moments are exact but for their divisor."""

    rewards: np.ndarray
    lengths: np.ndarray
    pushes: np.ndarray
    variances: np.ndarray
    gradient_pushes: np.ndarray
    scores: np.ndarray
    gradients: np.ndarray
    paths: list[tuple[int, ...]]
    student: dict[tuple[int, ...], np.ndarray]
    teacher: dict[tuple[int, ...], np.ndarray]

    def nodes(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Every prefix and the responses that pass through it."""
        for prefix in self.student:
            through = [i for i, path in enumerate(self.paths) if path[: len(prefix)] == prefix and len(path) > len(prefix)]
            if through:
                yield prefix, np.array(through)

    def expectation(self, prefix: tuple[int, ...], values: np.ndarray) -> np.ndarray:
        """Mean of a number over the responses that go on with each token."""
        found = np.zeros(VOCABULARY)
        for token in range(VOCABULARY):
            found[token] = np.mean([values[i] for i, path in enumerate(self.paths) if path[: len(prefix) + 1] == (*prefix, token)])
        return found


def make_tree(seed: int = 0) -> Tree:
    generator = np.random.default_rng(seed)
    prefixes = [p for depth in range(DEPTH) for p in itertools.product(range(VOCABULARY), repeat=depth)]
    # token 2 in first place ends the response: lengths differ
    student = {p: generator.permutation(STUDENT) for p in prefixes if not p or p[0] != 2}
    teacher = {p: generator.dirichlet(np.ones(VOCABULARY)) for p in student}
    paths: list[tuple[int, ...]] = []
    for path in itertools.product(range(VOCABULARY), repeat=DEPTH):
        full = (2,) if path[0] == 2 else path
        if path[0] == 2 and path[1:] != (0, 0):
            continue
        chance = np.prod([student[full[:k]][token] for k, token in enumerate(full)])
        paths += [full] * round(chance * 4**DEPTH)
    reward = {path: float(generator.random() < 0.5) for path in dict.fromkeys(paths)}
    columns = np.zeros((5, len(paths)))
    for i, path in enumerate(paths):
        for k, token in enumerate(path):
            p, q = student[path[:k]], teacher[path[:k]]
            f = reverse_kl_signal(np.log(p), np.log(q))
            d = distillation_gradient(np.log(p), np.log(q), "reverse_kl")
            own = [f[token] - p @ f, p @ f**2 - (p @ f) ** 2, d[token] - p @ d, 1 - 2 * p[token] + p @ p, d @ d]
            columns[:, i] += own
    lengths = np.array([len(path) for path in paths], dtype=float)
    return Tree(np.array([reward[path] for path in paths]), lengths, *columns, paths, student, teacher)


@pytest.mark.parametrize("by_length", [True, False])
def test_covariances_of_responses_are_the_sums_over_nodes(by_length: bool) -> None:
    tree = make_tree()
    signals = rl_signals(tree.rewards, tree.lengths, GroupAdvantage(np.array(0.7), np.array(-0.4)), by_length, float(tree.lengths.mean()))
    found = fisher_moments(tree.rewards, signals, tree.pushes, tree.variances)
    expected = np.zeros(6)
    for prefix, through in tree.nodes():
        p, q = tree.student[prefix], tree.teacher[prefix]
        ideal, rl = tree.expectation(prefix, tree.rewards), tree.expectation(prefix, signals)
        push = reverse_kl_signal(np.log(p), np.log(q))
        pairs = [(ideal, ideal), (ideal, rl), (ideal, push), (rl, rl), (rl, push), (push, push)]
        expected += len(through) * np.array([p @ (x * y) - (p @ x) * (p @ y) for x, y in pairs])
    count = len(tree.paths)
    np.testing.assert_allclose(found[:5] * (count - 1), expected[:5], rtol=1e-10)
    np.testing.assert_allclose(found[5] * count, expected[5], rtol=1e-10)


def test_single_rollouts_have_the_moments_of_all_their_updates_on_the_logits() -> None:
    tree = make_tree(1)
    count = len(tree.paths)
    signals = rl_signals(tree.rewards, tree.lengths, GroupAdvantage(np.array(0.7), np.array(-0.4)), False, 1.0)
    expected = np.zeros(6)
    for prefix, through in tree.nodes():
        p, q = tree.student[prefix], tree.teacher[prefix]
        success = tree.expectation(prefix, tree.rewards)
        ideal, push = p * (success - p @ success), distillation_gradient(np.log(p), np.log(q), "reverse_kl")
        updates = np.array([signals[i] * (np.eye(VOCABULARY)[tree.paths[i][len(prefix)]] - p) for i in through])
        mean = updates.mean(axis=0)
        square = np.mean(np.sum(updates**2, axis=1))
        expected += len(through) / count * np.array([ideal @ ideal, ideal @ mean, ideal @ push, square, mean @ push, push @ push])
    fisher = fisher_moments(tree.rewards, signals, tree.pushes, tree.variances)
    found = sampled_moments(fisher, signals, tree.gradient_pushes, tree.scores, tree.gradients, float(expected[0]), float(expected[2]))
    found[4] *= (count - 1) / count
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_unverified_rollouts_are_left_out() -> None:
    outcomes, other = np.array([1.0, 0.0, np.nan, 1.0]), np.array([0.2, 0.1, 9.0, 0.4])
    found, keep = fisher_moments(outcomes, outcomes - 0.5, other, other), [0, 1, 3]
    np.testing.assert_array_equal(found, fisher_moments(outcomes[keep], outcomes[keep] - 0.5, other[keep], other[keep]))
    assert np.isnan(fisher_moments(outcomes[:1], outcomes[:1], other[:1], other[:1])).all()
    with pytest.raises(ShapeError, match="one length"):
        fisher_moments(outcomes, outcomes, other, other[:2])


def moments_of(seed: int) -> np.ndarray:
    """Moments of three random directions."""
    ideal, rl, distillation = np.random.default_rng(seed).normal(size=(3, 4))
    return np.array([ideal @ ideal, ideal @ rl, ideal @ distillation, rl @ rl, rl @ distillation, distillation @ distillation])


@given(st.integers(0, 100_000))
def test_no_share_on_a_grid_is_better_than_the_closed_form(seed: int) -> None:
    moments = moments_of(seed)
    best = best_share(moments)
    grid = mix_alignment(moments[None], np.linspace(0, 1, 501))
    if np.isnan(best):
        assert np.max(grid) <= 1e-6
    else:
        assert 0 <= best <= 1
        assert np.max(grid) <= float(mix_alignment(moments, best)) + 1e-12


@given(st.integers(0, 100_000), st.floats(0.1, 10))
def test_alignment_does_not_depend_on_units_and_the_share_follows_them(seed: int, factor: float) -> None:
    moments = moments_of(seed)
    scaled = moments * np.array([1, 1, factor, 1, factor, factor**2])
    first, second = best_share(moments), best_share(scaled)
    assert np.isnan(first) == np.isnan(second)
    if not np.isnan(first):
        np.testing.assert_allclose(mix_alignment(scaled, second), mix_alignment(moments, first), rtol=1e-9)


def test_where_reinforcement_learning_is_the_ideal_direction_no_distillation_is_mixed_in() -> None:
    tree = make_tree(2)
    signals = rl_signals(tree.rewards, tree.lengths, group_advantage(np.array(0.5), 8, False), False, 1.0)
    rows = np.stack([fisher_moments(tree.rewards, signals, tree.pushes, tree.variances)] * 3)
    found = mix(rows, 0.9)
    assert found.share.value == 0.0
    assert found.rl.value == pytest.approx(1.0, abs=1e-12)
    assert found.mixed.value == pytest.approx(1.0, abs=1e-12)
