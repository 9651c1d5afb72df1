"""Allocation of continuations: equal to brute force, to the closed form, and blind to a stratum's own outcomes where it has to be."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdscope.core.alignment import gain_variance
from opdscope.core.allocation import (
    allocate_tokens,
    counts_for_variance,
    cross_fitted_success,
    even_counts_for_variance,
    marginal_reduction,
    neyman_counts,
    target_weights,
)
from opdscope.errors import ShapeError

few = settings(max_examples=100, deadline=None, derandomize=True)


def one_by_one(weights, variance, counts, cost, budget):
    """A heap that draws one continuation at a time, and stops at the first that does not fit."""
    added, left = np.zeros(len(weights), dtype=np.int64), budget * (1 + 1e-12)

    def entry(j):
        now = marginal_reduction(weights[j : j + 1], variance[j : j + 1], (counts + added)[j : j + 1], cost[j : j + 1])[0]
        return (-now, -(weights[j] ** 2) * variance[j] / cost[j], j)

    heap = [entry(j) for j in range(len(weights))]
    heapq.heapify(heap)
    while heap and heap[0][0] < 0 and cost[heap[0][2]] <= left:
        j = heapq.heappop(heap)[2]
        added[j] += 1
        left -= cost[j]
        heapq.heappush(heap, entry(j))
    return added


@few
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0, 3000))
def test_the_allocator_equals_a_heap_that_draws_one_continuation_at_a_time(seed, size, budget):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=size) * rng.integers(0, 2, size=size)
    variance, cost = rng.uniform(0.01, 0.25, size=size), rng.uniform(1, 60, size=size)
    counts = rng.integers(0, 6, size=size)
    np.testing.assert_array_equal(
        allocate_tokens(weights, variance, counts, cost, budget), one_by_one(weights, variance, counts, cost, budget)
    )


def test_with_equal_costs_no_other_allocation_of_the_same_tokens_has_a_smaller_variance():
    weights, variance = np.array([0.5, -0.3, 0.1]), np.array([0.25, 0.1, 0.2])
    counts = np.ones(3, dtype=np.int64)
    found = counts + allocate_tokens(weights, variance, counts, np.full(3, 7.0), 7.0 * 9)
    assert found.sum() == 12
    best = min(sum(weights**2 * variance / np.array(n)) for n in itertools.product(range(1, 11), repeat=3) if sum(n) == 12)
    assert np.sum(weights**2 * variance / found) == pytest.approx(best, rel=1e-12)


def test_a_large_budget_ends_in_neymans_closed_form():
    rng = np.random.default_rng(3)
    weights, variance, cost = rng.normal(size=20), rng.uniform(0.05, 0.25, size=20), rng.uniform(5, 50, size=20)
    found = 1 + allocate_tokens(weights, variance, np.ones(20, dtype=np.int64), cost, 1e7)
    # greedy counts solve n(n-1) ~ const instead of n^2 ~ const, and are whole: within one of the closed form
    np.testing.assert_allclose(found, neyman_counts(weights, variance, cost, float(np.sum(found * cost))), atol=1.5)
    np.testing.assert_allclose(np.sum(neyman_counts(weights, variance, cost, 500.0) * cost), 500.0, rtol=1e-12)


def test_nothing_is_spent_where_nothing_matters_and_never_more_than_the_budget():
    zero = np.zeros(3)
    assert allocate_tokens(zero, zero + 0.25, zero.astype(int), zero + 1, 100.0).sum() == 0
    assert allocate_tokens(zero + 1, zero + 0.25, zero.astype(int), zero + 10, 25.0).tolist() == [1, 1, 0]
    assert neyman_counts(zero, zero + 0.25, zero + 1, 100.0).tolist() == [0, 0, 0]
    with pytest.raises(ShapeError, match="one shape"):
        allocate_tokens(zero, zero[:2], zero.astype(int), zero + 1, 1.0)
    with pytest.raises(ValueError, match="positive number of tokens"):
        allocate_tokens(zero, zero, zero.astype(int), zero, 1.0)


def test_counts_for_a_variance_reach_it_with_the_fewest_tokens():
    rng = np.random.default_rng(5)
    weights, variance, cost = rng.normal(size=(6, 4)), rng.uniform(0.05, 0.25, size=(6, 4)), rng.uniform(5, 50, size=(6, 4))
    counts = counts_for_variance(weights[None], variance, cost, 0.002, np.ones((6, 4), dtype=np.int64), 10**6)
    reached = np.sum(weights**2 * variance / counts, axis=1)
    assert np.all(reached <= 0.002)
    # the same tokens cannot reach less than Neyman's closed form; rounding up costs at most one continuation a stratum
    bound = np.array(
        [
            np.sum(w**2 * v / neyman_counts(w, v, c, float(np.sum(n * c))))
            for w, v, c, n in zip(weights, variance, cost, counts, strict=True)
        ]
    )
    assert np.all(reached >= bound * (1 - 1e-12))
    assert np.all(np.abs(reached / 0.002 - 1) < 0.02)


def test_a_width_for_several_teachers_costs_hardly_more_than_is_proven_to_be_needed():
    """Duality: for any multipliers that sum to one, the Lagrangian's minimum bounds the cost of every allocation that reaches the width."""
    rng = np.random.default_rng(17)
    weights, variance = rng.normal(size=(3, 8, 5)), rng.uniform(0.05, 0.25, size=(8, 5))
    cost, wanted = rng.uniform(5, 60, size=(8, 5)), 1e-4
    counts = counts_for_variance(weights, variance, cost, wanted, np.ones((8, 5), dtype=np.int64), 10**8)
    size = weights**2 * variance
    reached = np.sum(size / counts, axis=-1)
    assert np.all(reached <= wanted)
    proven = np.zeros(8)
    for multipliers in rng.dirichlet(np.full(3, 0.7), size=4000):
        proven = np.maximum(proven, np.sum(np.sqrt(np.einsum("t,tns->ns", multipliers, size) * cost), axis=1) ** 2 / wanted)
    spent = np.sum(counts * cost, axis=1)
    # rounding up costs at most one continuation a stratum; ten steps come within a few per cent of the bound, which 4,000 trials miss by less
    assert np.all(spent >= proven)
    assert np.all(spent - cost.sum(axis=1) <= 1.05 * proven)
    # what one teacher alone would need, stratum by stratum, is enough for all, and more than is needed
    largest = counts_for_variance(np.max(np.abs(weights), axis=0)[None], variance, cost, wanted, np.ones((8, 5), dtype=np.int64), 10**8)
    assert np.sum(largest * cost) > 1.2 * np.sum(spent)


def test_even_numbers_for_a_width_are_the_smallest_that_reach_it():
    rng = np.random.default_rng(19)
    weights, variance, wanted = rng.normal(size=(3, 6, 4)), rng.uniform(0.05, 0.25, size=(6, 4)), 0.004
    counts = even_counts_for_variance(weights, variance, wanted, np.ones((6, 4), dtype=np.int64), 10**8)
    assert np.all(counts == counts[:, :1])
    size = np.sum(weights**2 * variance, axis=-1)
    assert np.all(np.max(size / counts[:, 0], axis=0) <= wanted)
    assert np.all(np.max(size / (counts[:, 0] - 1), axis=0) > wanted)


def test_the_mean_variance_of_several_teachers_gains_is_the_one_that_the_weights_give():
    rng = np.random.default_rng(7)
    probs, signals, noise = rng.dirichlet(np.ones(5), size=4), rng.normal(size=(3, 4, 5)), rng.uniform(0, 0.1, size=(4, 5))
    scales = rng.uniform(0.5, 2, size=(3, 4))
    weights = target_weights(probs, signals, scales)
    direct = np.mean([gain_variance(np.log(probs), f, noise) / s**2 for f, s in zip(signals, scales, strict=True)], axis=0)
    np.testing.assert_allclose(np.sum(weights**2 * noise, axis=1), direct, rtol=1e-12)


def test_a_rows_own_outcomes_do_not_move_its_prediction():
    rng = np.random.default_rng(11)
    features, fold = rng.normal(size=(60, 3)), np.repeat(np.arange(6), 10)
    verified = np.full(60, 4)
    correct = rng.binomial(4, 1 / (1 + np.exp(-2 * features[:, 0])))
    found = cross_fitted_success(features, correct, verified, fold)
    turned = np.where(fold == 2, 4 - correct, correct)
    np.testing.assert_array_equal(cross_fitted_success(features, turned, verified, fold)[fold == 2], found[fold == 2])
    assert np.corrcoef(found, features[:, 0])[0, 1] > 0.9
    assert np.all((found > 0) & (found < 1))
    all_right = cross_fitted_success(features, verified, verified, fold)
    np.testing.assert_allclose(all_right, 201 / 202, rtol=1e-12)  # 50 rows of 4 outcomes elsewhere, one success and one failure added


def test_the_budget_of_a_hundred_thousand_nodes_of_ten_candidates_is_spent_to_the_last_continuation():
    rng = np.random.default_rng(13)
    size = 1_000_000
    weights, variance, cost = rng.normal(size=size), rng.uniform(0.01, 0.25, size=size), rng.uniform(1, 100, size=size)
    counts = np.full(size, 2)
    found = allocate_tokens(weights, variance, counts, cost, 1e8)
    spent = float(np.sum(found * cost))
    assert 1e8 - 100 < spent <= 1e8
