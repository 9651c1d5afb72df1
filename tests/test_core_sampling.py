"""Designs of measurement: inclusion probabilities that hold, candidates that teachers want, budgets that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdscope.core.sampling import (
    allocate_continuations,
    choose_candidates,
    importance_per_cost,
    inclusion_probabilities,
    node_importance,
    systematic_sample,
    variance_importance,
)
from opdscope.errors import ShapeError

IMPORTANCE = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=60).map(np.array)
few = settings(max_examples=150, deadline=None, derandomize=True)


@few
@given(IMPORTANCE, st.integers(1, 70), st.floats(0.01, 1.0))
def test_inclusion_probabilities_sum_to_the_number_of_nodes_and_never_fall_below_their_uniform_share(importance, num_nodes, share):
    found = inclusion_probabilities(importance, num_nodes, share)
    size = len(importance)
    assert found.sum() == pytest.approx(min(num_nodes, size), rel=1e-12)
    assert found.max() <= 1.0
    # capping others at one only raises the rest, so the share holds everywhere
    assert found.min() >= min(1.0, share * num_nodes / size) * (1 - 1e-12)


@few
@given(IMPORTANCE, st.integers(1, 70), st.floats(0.01, 1.0))
def test_more_important_positions_are_included_at_least_as_often(importance, num_nodes, share):
    found = inclusion_probabilities(importance, num_nodes, share)[np.argsort(importance, kind="stable")]
    assert np.all(np.diff(found) >= -1e-12)


def test_uncapped_inclusion_is_the_mixture_and_capped_inclusion_rescales_the_rest():
    np.testing.assert_allclose(inclusion_probabilities(np.array([1.0, 2.0, 3.0, 4.0]), 2, 0.5), [0.35, 0.45, 0.55, 0.65], rtol=1e-15)
    np.testing.assert_allclose(inclusion_probabilities(np.array([98.0, 1.0, 1.0]), 2, 0.3), [1.0, 0.5, 0.5], rtol=1e-12)
    # nothing is important: all equal
    np.testing.assert_allclose(inclusion_probabilities(np.zeros(4), 1, 0.1), 0.25, rtol=1e-15)


@few
@given(IMPORTANCE, st.integers(1, 70), st.floats(0.01, 1.0), st.floats(0, 1, exclude_max=True))
def test_systematic_sample_is_sorted_without_repeats_and_of_fixed_size(importance, num_nodes, share, start):
    inclusion = inclusion_probabilities(importance, num_nodes, share)
    chosen = systematic_sample(inclusion, start)
    assert len(chosen) == min(num_nodes, len(importance))
    # a position that is certain spans one tick up to rounding of the running sum; the exact tie needs start within 1e-13 of a boundary
    assert np.all(np.diff(chosen) >= 0)
    boundary = np.min(np.abs((np.cumsum(inclusion) - start + 0.5) % 1 - 0.5))
    assert np.all(np.diff(chosen) > 0) or boundary < 1e-12
    assert chosen.min() >= 0
    assert chosen.max() < len(importance)


def test_systematic_sample_stays_inside_for_the_largest_start():
    # 63 + (1 - 2^-53) rounds to 64, one past the last position
    chosen = systematic_sample(np.full(128, 0.5), np.nextafter(1.0, 0.0))
    assert chosen.max() == 127
    assert len(chosen) == 64


def test_a_start_on_a_boundary_takes_the_position_that_begins_there():
    assert systematic_sample(np.ones(3), 0.0).tolist() == [0, 1, 2]
    assert systematic_sample(np.full(4, 0.5), 0.5).tolist() == [1, 3]


def test_systematic_sample_realises_the_inclusion_probabilities_exactly():
    inclusion = inclusion_probabilities(np.random.default_rng(0).exponential(size=25) ** 2, 7, 0.25)
    repeats = 20_000
    counts = np.zeros(25)
    # an even grid of starts is the expectation itself: each position is hit on an interval of length π, whose ends cost one start each
    for start in (np.arange(repeats) + 0.5) / repeats:
        counts[systematic_sample(inclusion, start)] += 1
    np.testing.assert_allclose(counts / repeats, inclusion, rtol=0, atol=2 / repeats)


def test_horvitz_thompson_totals_over_a_random_start_are_unbiased():
    generator = np.random.default_rng(1)
    importance = generator.exponential(size=30)
    values = 1.0 + importance * generator.uniform(size=30)
    inclusion = inclusion_probabilities(importance, 8, 0.25)
    samples = [systematic_sample(inclusion, start) for start in generator.uniform(size=4_000)]
    weighted = np.array([np.sum(values[chosen] / inclusion[chosen]) for chosen in samples])
    # four standard errors: wrong by chance once in 16,000
    assert abs(weighted.mean() - values.sum()) < 4 * weighted.std() / np.sqrt(len(samples))
    # without the weights the estimate follows the importance, and this test would see it
    unweighted = np.array([30 * np.mean(values[chosen]) for chosen in samples])
    assert abs(unweighted.mean() - values.sum()) > 40 * unweighted.std() / np.sqrt(len(samples))


def test_importance_vanishes_only_where_no_gain_is_possible():
    collision = np.array([1.0, 0.5, 0.5, 0.2])
    kl = np.array([[3.0, 0.0, 1.0, 1.0], [3.0, 0.0, 0.0, 1.0]])
    found = node_importance(collision, kl)
    assert (found == 0).tolist() == [True, True, False, False]
    assert found[3] > found[2]


def test_importance_ignores_the_size_of_a_whole_teacher():
    generator = np.random.default_rng(2)
    collision, kl = generator.uniform(size=9), generator.exponential(size=(2, 9))
    np.testing.assert_allclose(node_importance(collision, kl * np.array([[100.0], [1.0]])), node_importance(collision, kl), rtol=1e-12)
    # a KL that rounding left below zero, and a teacher that is the student everywhere
    assert np.all(np.isfinite(node_importance(collision, np.array([np.full(9, -1e-9), kl[0]]))))
    np.testing.assert_array_equal(node_importance(collision, np.zeros((1, 9))), 0.0)


def test_importance_for_the_variance_makes_the_sum_of_gains_vary_least():
    generator = np.random.default_rng(5)
    kl, settled, cost = generator.exponential(size=(2, 20)), generator.dirichlet(np.ones(20)), generator.uniform(1, 50, size=20)
    # the model of the docstring: a gain as large as it can be and noise of n continuations, each teacher in units of its own push
    moment = np.mean(kl / kl.mean(axis=1, keepdims=True), axis=0) * (settled + 1 / 32)
    best = variance_importance(kl, settled, 32)
    np.testing.assert_allclose(best**2, moment, rtol=1e-12)
    dear = importance_per_cost(best, cost)

    def product(weights):
        return np.sum(moment / weights) * np.sum(weights * cost)

    def variance(weights):
        return np.sum(moment / weights) * np.sum(weights)

    for _ in range(200):
        other = np.exp(generator.normal(scale=0.3, size=20))
        assert variance(best) < variance(best * other)
        assert product(dear) < product(dear * other)


def test_importance_for_the_variance_ignores_teachers_that_push_nowhere():
    kl, settled = np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([0.4, 0.6])
    np.testing.assert_allclose(variance_importance(kl, settled, 8), variance_importance(kl[:1], settled, 8) / np.sqrt(2), rtol=1e-12)


def test_success_spread_is_bounded_by_the_students_freedom():
    generator = np.random.default_rng(3)
    for _ in range(200):
        p, success = generator.dirichlet(np.full(5, 0.5)), generator.integers(0, 2, size=5)
        spread = np.sum(p * success**2) - np.sum(p * success) ** 2
        assert spread <= (1 - np.sum(p**2)) / 2 + 1e-15  # the bound that `node_importance` quotes


def test_a_token_that_only_a_teacher_wants_is_a_candidate():
    student, teachers = np.array([0.6, 0.3, 0.0999, 0.0001]), np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    found = choose_candidates(student, teachers, 3, 0.02)
    assert found.token_ids.tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.share, [0.45, 0.25, 0.20005], rtol=1e-12)


def test_candidates_obey_the_threshold_and_fall_back_to_the_likeliest():
    student = np.full(100, 0.01)
    assert len(choose_candidates(student, np.zeros((0, 100)), 8, 0.02).token_ids) == 1
    assert choose_candidates(np.array([0.9, 0.09, 0.01]), np.zeros((0, 3)), 8, 0.02).token_ids.tolist() == [0, 1]
    np.testing.assert_allclose(choose_candidates(np.array([0.9, 0.1]), np.zeros((0, 2)), 8, 0.02).share, [0.9, 0.1], rtol=1e-15)


def test_ties_between_candidates_go_to_the_smaller_token_id():
    student = np.full(10, 0.1)
    assert choose_candidates(student, student[None], 4, 0.02).token_ids.tolist() == [0, 1, 2, 3]


@few
@given(
    st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(1e-9, 10)), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 300),
    st.integers(0, 6),
)
def test_allocations_add_up_and_keep_the_minimum(strata, budget, minimum):
    weights, sampled = np.array([w for w, _ in strata]), np.array([s for _, s in strata])
    counts = allocate_continuations(weights, budget, minimum, sampled)
    assert counts.sum() == (max(budget, minimum * sampled.sum()) if sampled.any() else 0)
    assert np.all(counts[sampled] >= minimum)
    assert np.all(counts[~sampled] == 0)


def test_allocations_are_proportional_where_no_minimum_binds():
    counts = allocate_continuations(np.array([5.0, 3.0, 2.0]), 1000, 3, np.array([True, True, True]))
    assert counts.tolist() == [500, 300, 200]
    assert allocate_continuations(np.array([0.0, 0.0]), 7, 1, np.array([True, True])).tolist() == [4, 3]


def test_allocation_refuses_flags_of_another_shape():
    with pytest.raises(ShapeError, match=r"expected one flag per stratum, \(3,\), found \(2,\)"):
        allocate_continuations(np.ones(3), 9, 1, np.ones(2, dtype=bool))
