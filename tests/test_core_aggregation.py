"""One number with an interval: against scipy, against the delta method, and where there is too little to say."""

import math

import numpy as np
import pytest
from scipy import stats

from opdscope.core.aggregation import clustered_mean, clustered_statistic, pooled_cosine, ratio
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


def test_jackknife_of_the_pooled_cosine_agrees_with_the_bootstrap():
    generator = np.random.default_rng(3)
    size = 100
    norms = generator.gamma(3.0, size=(size, 2))
    sums = np.stack([0.3 * np.sqrt(norms.prod(axis=1)) + 0.5 * generator.normal(size=size), *norms.T], axis=1)
    found = clustered_statistic(sums, pooled_cosine, 0.9)
    assert found.value == pytest.approx(sums[:, 0].sum() / np.sqrt(sums[:, 1].sum() * sums[:, 2].sum()), rel=1e-13)
    draws = [pooled_cosine(sums[generator.integers(0, size, size=size)].sum(axis=0)) for _ in range(4000)]
    # 4,000 bootstrap draws know their own spread to 1.1 %; the two methods differ by terms of order 1 / questions
    assert found.standard_error == pytest.approx(np.std(draws), rel=0.045)


def test_order_of_questions_does_not_matter():
    sums = np.random.default_rng(4).gamma(3.0, size=(20, 3))
    order = np.random.default_rng(5).permutation(20)
    np.testing.assert_allclose(
        as_list(clustered_statistic(sums[order], pooled_cosine, 0.9)), as_list(clustered_statistic(sums, pooled_cosine, 0.9)), rtol=1e-12
    )


def test_an_undefined_statistic_has_no_value_and_no_interval():
    assert math.isnan(ratio(np.array([1.0, 0.0])))
    for norms in ([0.0, 1.0], [-0.1, 1.0], [-0.1, -1.0], [1.0, 0.0]):
        assert math.isnan(pooled_cosine(np.array([0.5, *norms])))
    # defined on all questions, undefined without the first: the jackknife cannot say
    found = clustered_statistic(np.array([[1.0, 2.0], [1.0, 0.0]]), ratio, 0.9)
    assert found.value == 1.0
    assert math.isnan(found.standard_error)


def test_pooled_cosine_of_equal_vectors_is_one():
    assert pooled_cosine(np.array([2.0, 2.0, 2.0])) == pytest.approx(1.0, rel=1e-15)


def test_sums_without_a_component_axis_are_refused():
    with pytest.raises(ShapeError, match="expected sums as cluster × component, found 1 axes"):
        clustered_statistic(np.ones(3), ratio, 0.9)
