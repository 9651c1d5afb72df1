"""Several looks at one experiment: their intervals hold together, and no look changes what an earlier one said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opdscope.core.stopping import look_sizes, settled, spending_widths, standard_error_at


def walks(source: np.random.Generator, clusters: int, looks: tuple[int, ...], tests: int) -> list[np.ndarray]:
    """Running means of noise per cluster, on top of a difference between clusters that no look removes; the truth is zero."""
    steps = source.standard_t(5, size=(looks[-1], clusters, tests)).cumsum(axis=0)
    between = source.normal(size=(clusters, tests))
    return [between + 2.0 * steps[n - 1] / n for n in looks]


def test_intervals_of_all_looks_and_means_hold_together_at_the_confidence_asked_for() -> None:
    source, repetitions, sizes = np.random.default_rng(0), 800, (4, 8, 16, 32)
    broken = {"spending": 0, "each look alone": 0}
    for _ in range(repetitions):
        looks = walks(source, 20, sizes, 3)
        widths = spending_widths(looks, len(sizes), 0.9, source, 1000)
        largest = np.array([np.max(np.abs(v.mean(axis=0)) / (v.std(axis=0, ddof=1) / np.sqrt(20))) for v in looks])
        broken["spending"] += bool(np.any(largest > widths))
        broken["each look alone"] += bool(np.any(largest > stats.t.ppf(0.95, 19)))
    # four binomial errors, and one more percent for the quantile's 1,000 draws
    tolerance = 4 * np.sqrt(0.09 / repetitions) + 0.01
    assert abs(broken["spending"] / repetitions - 0.1) < tolerance
    assert broken["each look alone"] / repetitions > 0.1 + tolerance


def test_widths_of_finished_looks_do_not_change_when_another_is_taken() -> None:
    looks = walks(np.random.default_rng(1), 12, (4, 8, 16), 2)
    after = [spending_widths(looks[: k + 1], 3, 0.9, np.random.default_rng(2)) for k in range(3)]
    np.testing.assert_array_equal(after[1][:1], after[0])
    np.testing.assert_array_equal(after[2][:2], after[1])


def test_one_look_of_one_mean_is_students_interval() -> None:
    column = np.random.default_rng(3).normal(size=(15, 1))
    (width,) = spending_widths([column], 1, 0.9, np.random.default_rng(4), 100_000)
    # the standard error of a quantile from n draws is sqrt(p (1 - p) / n) / density, twice the density for |t|
    exact = stats.t.ppf(0.95, 14)
    assert width == pytest.approx(exact, abs=4 * np.sqrt(0.09 / 100_000) / (2 * stats.t.pdf(exact, 14)))


def test_a_mean_of_one_question_has_no_width_and_too_many_looks_are_refused() -> None:
    values = np.array([[1.0], [np.nan]])
    assert np.isnan(spending_widths([values], 2, 0.9, np.random.default_rng(0))).all()
    known = np.array([[1.0], [2.0], [4.0]])
    after = spending_widths([known, np.full((3, 1), np.nan), known], 3, 0.9, np.random.default_rng(0))
    assert np.isnan(after).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="at most num_looks = 1"):
        spending_widths([values, values], 1, 0.9, np.random.default_rng(0))


def test_what_is_undefined_is_never_settled() -> None:
    assert settled(np.array([np.nan, 1.0]), np.array([0.1, np.nan]), 0.05).tolist() == [False, False]


@given(st.integers(2, 5000), st.integers(1, 12))
def test_looks_rise_to_the_most_and_start_with_enough_to_differ(most: int, looks: int) -> None:
    sizes = look_sizes(most, looks)
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= looks
    assert all(size >= 4 for size in sizes[:-1])


def test_the_error_with_more_rollouts_keeps_what_differs_between_questions() -> None:
    source = np.random.default_rng(5)
    between, noise = source.normal(size=(4000, 1)), source.normal(size=(4000, 1))
    foretold = standard_error_at(between + 2.0 * noise, np.array([4.0]), 16.0)
    # variance between 1, within 4 / 16; four standard errors of a variance of 5 from 4,000 questions are 9 % of 5
    assert foretold[0] ** 2 * 4000 == pytest.approx(1.25, abs=0.45)
