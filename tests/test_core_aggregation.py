"""One number with an interval: against scipy, against the delta method, and where there is too little to say."""

import math

import numpy as np
import pytest
from scipy import stats

from opdscope.core.aggregation import (
    clustered_mean,
    clustered_statistic,
    interval_reach,
    pooled_cosine,
    ratio,
    simultaneous_quantile,
)
from opdscope.errors import ShapeError


def as_list(estimate):
    return [estimate.value, estimate.low, estimate.high, estimate.standard_error]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [2, 3, 30])
def test_mean_is_scipys_t_interval(count, confidence):
    values = np.random.default_rng(count).normal(size=count)
    found = clustered_mean(values, confidence)
    low, high = stats.t.interval(confidence, count - 1, loc=values.mean(), scale=stats.sem(values))
    # two implementations of the t quantile, good to about ten digits
    np.testing.assert_allclose(as_list(found), [values.mean(), low, high, stats.sem(values)], rtol=1e-9)
    assert (found.num_clusters, found.confidence) == (count, confidence)


def test_undefined_questions_are_not_counted():
    values = np.array([np.nan, 1.0, 2.0, np.nan, 4.0])
    assert clustered_mean(values, 0.9) == clustered_mean(np.array([1.0, 2.0, 4.0]), 0.9)
    sums = np.array([[1.0, 2.0], [np.nan, 5.0], [3.0, 4.0], [2.0, np.nan], [1.0, 1.0]])
    assert clustered_statistic(sums, ratio, 0.9) == clustered_statistic(sums[[0, 2, 4]], ratio, 0.9)


@pytest.mark.parametrize("few", [1, 0])
def test_too_few_questions_have_no_interval(few):
    values = np.array([0.5, np.nan, np.nan]) if few else np.full(3, np.nan)
    for found in (clustered_mean(values, 0.9), clustered_statistic(np.stack([values, np.ones(3)], axis=1), ratio, 0.9)):
        assert found.num_clusters == few
        assert all(math.isnan(number) for number in (found.low, found.high, found.standard_error))
        assert found.value == 0.5 if few else math.isnan(found.value)


def test_no_questions_at_all_are_undefined_and_no_error():
    assert clustered_mean(np.array([]), 0.9).num_clusters == 0
    assert math.isnan(clustered_statistic(np.zeros((0, 2)), ratio, 0.9).value)


def test_jackknife_of_a_mean_is_the_mean():
    values = np.random.default_rng(1).normal(size=17)
    found = clustered_statistic(np.stack([values, np.ones(17)], axis=1), ratio, 0.9)
    # algebraically the same number
    np.testing.assert_allclose(as_list(found), as_list(clustered_mean(values, 0.9)), rtol=1e-12)


def test_jackknife_of_a_ratio_agrees_with_the_delta_method():
    generator = np.random.default_rng(2)
    weights = generator.gamma(9.0, size=400)
    numerators = weights * generator.normal(0.3, 1.0, size=400)
    found = clustered_statistic(np.stack([numerators, weights], axis=1), ratio, 0.9)
    value = numerators.sum() / weights.sum()
    delta = np.std(numerators - value * weights, ddof=1) / np.sqrt(400) / weights.mean()
    assert found.value == pytest.approx(value, rel=1e-13)
    # they differ by terms of order 1 / questions
    assert found.standard_error == pytest.approx(delta, rel=2 / 400)


def test_interval_of_the_pooled_cosine_agrees_with_the_bootstrap_where_the_norm_is_well_known():
    generator = np.random.default_rng(3)
    size = 100
    norms = generator.gamma(3.0, size=(size, 2))
    sums = np.stack([0.3 * np.sqrt(norms.prod(axis=1)) + 0.5 * generator.normal(size=size), *norms.T], axis=1)
    found = pooled_cosine(sums, 0.9)
    assert found.value == pytest.approx(sums[:, 0].sum() / np.sqrt(sums[:, 1].sum() * sums[:, 2].sum()), rel=1e-13)
    totals = np.array([sums[generator.integers(0, size, size=size)].sum(axis=0) for _ in range(4000)])
    low, high = np.quantile(totals[:, 0] / np.sqrt(totals[:, 1] * totals[:, 2]), [0.05, 0.95])
    # the grid has steps of .005, 4,000 draws know a quantile of this width to .002, and the methods differ by terms of order 1 / questions
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_where_noise_is_all_there_is_the_pooled_cosine_has_no_value_and_any_cosine_is_possible():
    generator = np.random.default_rng(4)
    sums = np.stack([generator.normal(size=30), generator.normal(size=30) - 0.3, np.ones(30)], axis=1)
    found = pooled_cosine(sums, 0.9)
    assert math.isnan(found.value)
    assert found.high - found.low > 1.0


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_interval_of_the_pooled_cosine_covers_even_where_the_norm_is_hardly_known(noise):
    generator, repeats, size, truth = np.random.default_rng(5), 1000, 24, 0.4
    held = 0
    for _ in range(repeats):
        push = generator.gamma(3.0, size=size)
        ideal = 1.0 + noise * generator.normal(size=size)
        product = truth * np.sqrt(3.0) * generator.gamma(2.0, size=size) / 2.0
        found = pooled_cosine(np.stack([product, ideal, push], axis=1), 0.9)
        held += found.low <= truth <= found.high
    # binomial: four standard errors of .0095; the statistic is quadratic, which costs up to two points with 24 questions
    assert 0.9 - 0.038 - 0.02 < held / repeats < 0.9 + 0.038 + 0.02


def test_interval_of_a_pooled_cosine_of_zero_is_not_too_wide():
    generator, repeats, size = np.random.default_rng(9), 1000, 24
    held = 0
    for _ in range(repeats):
        product, ideal, push = generator.normal(size=size), 1.0 + generator.normal(size=size), generator.gamma(3.0, size=size)
        found = pooled_cosine(np.stack([product, ideal, push], axis=1), 0.9)
        held += found.low <= 0 <= found.high
    # binomial: four standard errors of .0095; a statistic that is quadratic in the product covers 99 % here
    assert abs(held / repeats - 0.9) < 0.038


def test_a_norm_below_its_own_error_counts_as_that_error():
    generator = np.random.default_rng(10)
    product, ideal = 1.0 + 0.1 * generator.normal(size=40), generator.normal(size=40)
    ends = []
    for mean in (-0.05, -0.5, -1.0):  # of a norm that is positive in truth; the more negative, the less it says
        found = pooled_cosine(np.stack([product, ideal - ideal.mean() + mean, np.full(40, 10.0)], axis=1), 0.9)
        assert math.isnan(found.value)
        ends.append((found.low, found.high))
    assert len(set(ends)) == 1
    assert ends[0][0] > 0.0  # the product is surely positive, and so is the norm: a cosine has the sign of the product


@pytest.mark.parametrize("shape", [0.25, 1.0])
@pytest.mark.parametrize("size", [24, 48])
def test_interval_of_a_mean_covers_even_where_values_are_skewed(size, shape):
    generator, repeats = np.random.default_rng(11), 3000
    values = generator.gamma(shape, size=(repeats, size))
    down, up = interval_reach(values.T, float(stats.t.ppf(0.95, size - 1)))
    distance, error = values.mean(axis=1) - shape, values.std(axis=1, ddof=1) / np.sqrt(size)
    covered = np.mean((distance <= down * error) & (-distance <= up * error))
    # binomial: four standard errors of .0055; at a skewness of 4 and 24 questions the estimated one costs another three points
    assert 0.9 - 0.022 - (0.03 if shape < 1 else 0.0) < covered < 0.9 + 0.022
    plain = np.mean(np.abs(distance) <= stats.t.ppf(0.95, size - 1) * error)
    assert covered - plain > 0.02


def test_skewness_moves_only_the_end_on_the_side_of_the_long_tail_and_only_outwards():
    values = np.random.default_rng(12).exponential(size=(40, 1)) * np.array([1.0, -1.0, 1e-3])
    down, up = interval_reach(values, 1.7)
    np.testing.assert_allclose(up[[0, 2]], down[[1, 1]], rtol=1e-9)
    assert down[0] == down[2] == up[1] == 1.7
    assert up[0] > 1.75
    even = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert tuple(map(float, interval_reach(even, 1.7))) == (1.7, 1.7)
    assert tuple(map(float, interval_reach(np.full(4, 0.1), 1.7))) == (1.7, 1.7)


def test_an_interval_that_holds_together_with_others_is_as_wide_as_it_is_told():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    found = clustered_mean(values, 0.9, 3.0)
    assert (found.low, found.high) == pytest.approx((2.5 - 3 * found.standard_error, 2.5 + 3 * found.standard_error))


def test_order_of_questions_does_not_matter():
    sums = np.random.default_rng(4).gamma(3.0, size=(20, 3))
    order = np.random.default_rng(5).permutation(20)
    np.testing.assert_allclose(as_list(pooled_cosine(sums[order], 0.9)), as_list(pooled_cosine(sums, 0.9)), rtol=1e-12)


def test_an_undefined_statistic_has_no_value_and_no_interval():
    assert math.isnan(ratio(np.array([1.0, 0.0])))
    for norms in ([0.0, 1.0], [-0.1, 1.0], [1.0, 0.0]):
        assert math.isnan(pooled_cosine(np.array([[0.5, *norms]] * 3), 0.9).value)
    # defined on all questions, undefined without the first: the jackknife cannot say
    found = clustered_statistic(np.array([[1.0, 2.0], [1.0, 0.0]]), ratio, 0.9)
    assert found.value == 1.0
    assert math.isnan(found.standard_error)


def test_pooled_cosine_of_equal_vectors_is_one():
    assert pooled_cosine(np.array([[2.0, 2.0, 2.0]] * 3), 0.9).value == pytest.approx(1.0, rel=1e-15)


def test_the_quantile_for_many_means_lies_between_one_mean_and_bonferroni():
    generator = np.random.default_rng(6)
    shared = generator.normal(size=(30, 1))
    for weight in (0.0, 0.9, 1.0):
        values = weight * shared + (1 - weight) * generator.normal(size=(30, 4))
        width = simultaneous_quantile(values, 0.9, np.random.default_rng(7))
        # 10,000 draws know the 90 % quantile to about .02
        assert stats.t.ppf(0.95, 29) - 0.06 < width < stats.t.ppf(1 - 0.05 / 4, 29) + 0.06


def test_simultaneous_intervals_hold_together_as_often_as_they_say():
    generator, repeats = np.random.default_rng(8), 1500
    held = 0
    for _ in range(repeats):
        values = generator.normal(size=(15, 1)) + generator.normal(size=(15, 4))
        width = simultaneous_quantile(values, 0.9, generator, 2000)
        intervals = [clustered_mean(column, 0.9, width) for column in values.T]
        held += all(interval.low <= 0 <= interval.high for interval in intervals)
    # binomial: four standard errors of .0077
    assert abs(held / repeats - 0.9) < 0.031


def test_a_mean_with_fewer_than_two_questions_leaves_no_simultaneous_interval():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 1.0]])
    assert math.isnan(simultaneous_quantile(values, 0.9, np.random.default_rng(0)))


def test_sums_without_a_component_axis_are_refused():
    with pytest.raises(ShapeError, match="expected sums as cluster × component, found 1 axes"):
        clustered_statistic(np.ones(3), ratio, 0.9)
