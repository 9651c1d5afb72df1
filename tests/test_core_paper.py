"""The source paper's protocol on arrays: windows, choice, kept children, tree counts, and a filter that finds something where there is nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdscope.core.gradients import distillation_gradient, ideal_gradient
from opdscope.core.paper import choose_pairs, depth_windows, filter_positive, kept_children, question_means
from opdscope.core.trie import count_visits
from opdscope.errors import ShapeError

few = settings(max_examples=100, deadline=None, derandomize=True)


def test_windows_are_the_papers():
    windows = depth_windows(751, 50)
    # first and last position of each window, counted from 1 as the paper counts
    bounds = [(int(np.argmax(windows == w)) + 1, int(np.flatnonzero(windows == w)[-1]) + 1) for w in range(4)]
    assert bounds == [(1, 50), (51, 150), (151, 350), (351, 750)]
    assert windows[750] == 4


@few
@given(st.integers(1, 3000), st.integers(1, 200))
def test_each_window_is_twice_as_wide_as_the_one_before(num_positions, first):
    widths = np.bincount(depth_windows(num_positions, first))
    assert widths[:-1].tolist() == [first * 2**w for w in range(len(widths) - 1)]
    assert 0 < widths[-1] <= first * 2 ** (len(widths) - 1)


def test_in_each_window_the_largest_by_either_size_are_chosen():
    window = np.array([0, 0, 0, 0, 1, 1])
    gradient = np.array([0.1, -0.4, 0.2, 0.0, 0.05, 0.01])
    difference = np.array([0.0, 0.1, 0.2, -0.9, -0.02, 0.01])
    assert choose_pairs(window, gradient, difference, 1, 1).tolist() == [False, True, False, True, True, False]
    assert choose_pairs(window, gradient, difference, 2, 0).tolist() == [False, True, True, False, True, True]


def test_rounding_does_not_decide_between_equal_sizes_and_nothing_is_chosen_without_a_push():
    noise = 3e-8
    equal = np.array([0.3 - noise, -0.3, 0.3 + noise])
    assert choose_pairs(np.zeros(3, dtype=int), equal, np.zeros(3), 2, 2).tolist() == [True, True, False]
    assert not choose_pairs(np.zeros(2, dtype=int), np.array([noise, -noise]), np.zeros(2), 5, 5).any()


PROBABILITY = st.floats(1e-6, 1.0)


@few
@given(st.lists(st.tuples(PROBABILITY, PROBABILITY, st.floats(0, 1)), min_size=2, max_size=2))
def test_two_kept_children_have_a_cosine_of_plus_or_minus_one(children):
    p, q, success = np.array(children).T
    found = float(kept_children(p, q, success, np.array([True, True])).cosine)
    pushed = np.log(q[0] / p[0]) - np.log(q[1] / p[1])
    if abs(success[0] - success[1]) < 1e-8 or abs(pushed) < 1e-4:
        # what counts as no range is 1e-9 and as no push 1e-5 nats; up to ten times that either answer is right
        assert np.isnan(found) or abs(found) == pytest.approx(1.0, abs=1e-9)
    else:
        assert found == pytest.approx(np.sign(pushed) * np.sign(success[0] - success[1]), abs=1e-9)


def test_with_all_children_kept_the_cosine_is_that_of_the_gradients_and_padding_changes_nothing():
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(5), size=(2, 40))
    success = generator.random((40, 5))
    g, d = ideal_gradient(p, success), distillation_gradient(np.log(p), np.log(q), "reverse_kl")
    expected = np.sum(g * d, axis=-1) / np.sqrt(np.sum(g**2, axis=-1) * np.sum(d**2, axis=-1))
    found = kept_children(p, q, success, np.ones((40, 5), dtype=bool))
    # float64 sums of five terms
    np.testing.assert_allclose(found.cosine, expected, atol=1e-12)
    np.testing.assert_allclose(found.advantage, np.sum((q - p) * success, axis=-1), atol=1e-12)
    np.testing.assert_allclose(found.success_range, np.ptp(success, axis=-1), atol=0)
    other = kept_children(
        *(np.concatenate([a, np.full((40, 2), fill)], axis=1) for a, fill in ((0.5 * p, 0.1), (0.2 * q, 0.3), (success, np.nan))),
        np.concatenate([np.ones((40, 5), dtype=bool), np.zeros((40, 2), dtype=bool)], axis=1),
    )
    # nor does the mass that the kept children have in all
    np.testing.assert_allclose(other.cosine, expected, atol=1e-12)
    np.testing.assert_allclose(other.advantage, found.advantage, atol=1e-12)


def test_what_has_no_direction_is_undefined():
    p, q, success = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.4, 0.4])
    cases = {
        "one child": (p, q, success, [True, False, False]),
        "no range up to rounding": (p, q, np.array([0.1, 0.49, (0.46 + 0.52) / 2]), [False, True, True]),
        "no range": (p, q, success, [False, True, True]),
        "no push": (p, p, success, [True, True, True]),
        "the teacher never takes a child": (p, np.array([0.5, 0.5, 0.0]), success, [True, True, True]),
    }
    for name, (own, teacher, values, kept) in cases.items():
        assert np.isnan(kept_children(own, teacher, values, np.array(kept)).cosine), name
    assert np.isnan(kept_children(p, q, success, np.array([True, True, False]), min_children=3).cosine)


def test_arrays_that_do_not_match_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        kept_children(np.ones(2), np.ones(2), np.ones(3), np.ones(2, dtype=bool))
    with pytest.raises(ShapeError, match="one shape"):
        choose_pairs(np.zeros(2, dtype=int), np.zeros(3), np.zeros(2), 1, 1)
    with pytest.raises(ShapeError, match="one value, path and weight"):
        question_means(np.ones(2), np.zeros(3, dtype=int), np.zeros(1, dtype=int), 1)


def test_means_run_over_nodes_then_paths_and_an_undefined_node_is_not_counted():
    values = np.array([1.0, 0.0, np.nan, 1.0, np.nan])
    path, question = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1])
    assert question_means(values, path, question, 3)[:1] == pytest.approx([(0.5 + 1.0) / 2])
    assert np.isnan(question_means(values, path, question, 3)[1:]).all()
    weights = np.array([3.0, 1.0, 9.0, 2.0, 1.0])
    assert question_means(values, path, question, 2, weights)[0] == pytest.approx((0.75 + 1.0) / 2)


def test_a_continuation_forced_below_is_counted_at_every_ancestor():
    path = np.array([1, 2, 3])
    rollouts = [path, np.array([1, 4, 5]), np.array([6, 7])]
    # forced at the node (1, 2) through token 8, so that the student never chose 1 or 2 for it
    forced = np.array([1, 2, 8, 9])
    counts = count_visits(path, [*rollouts, forced], np.array([0.0, 1.0, 0.0, 1.0]))
    visits = {position: [v.tolist() for v in counts.children(position, [1, 2, 3, 4, 6, 8])] for position in range(3)}
    assert visits[0] == [[3, 0, 0, 0, 1, 0], [2.0, 0, 0, 0, 0, 0]]
    assert visits[1] == [[0, 2, 0, 1, 0, 0], [0, 1.0, 0, 1.0, 0, 0]]
    assert visits[2] == [[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1.0]]


@few
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=20))
def test_visits_are_what_counting_prefixes_gives(responses):
    tokens, success = [np.array(r) for r, _ in responses], np.array([float(s) for _, s in responses])
    counts = count_visits(tokens[0], tokens, success)
    for position in range(len(tokens[0])):
        visits, successes = counts.children(position, [0, 1, 2])
        for token in range(3):
            child = [*tokens[0][:position].tolist(), token]
            through = [s for r, s in responses if r[: position + 1] == child]
            assert visits[token] == len(through)
            assert successes[token] == sum(through)


def test_the_oracle_filter_finds_alignment_in_noise_and_halves_do_not():
    """4,000 nodes at which every token succeeds equally often: all that a filter finds there, it makes itself."""
    generator, num_nodes, half = np.random.default_rng(5), 4000, 50
    p, q = generator.dirichlet(np.ones(4), size=(2, num_nodes))
    value = generator.uniform(0.2, 0.8, size=(num_nodes, 1))
    first, second = (generator.binomial(half, np.repeat(value, 4, axis=1)) / half for _ in range(2))
    kept = np.ones(p.shape, dtype=bool)
    a, b, both = (kept_children(p, q, s, kept).cosine for s in (first, second, (first + second) / 2))
    oracle, honest = filter_positive(both, both), np.concatenate([filter_positive(a, b), filter_positive(b, a)])
    error = np.nanstd(honest) / np.sqrt(num_nodes)
    # of a node at most one value each way; a node's two ways are correlated, which costs up to √2: four errors leave room for it
    assert abs(np.nanmean(honest)) < 4 * error
    assert abs(np.nanmean(both)) < 4 * np.nanstd(both) / np.sqrt(num_nodes)
    # four entries that sum to zero have three free dimensions: there a direction at random has a mean size of 0.5, and that is the least, since
    # the likely tokens have most of both gradients
    assert np.nanmean(oracle) > 0.5
