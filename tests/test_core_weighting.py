"""Weights of parts and shrinkage: the optimum by search, no weights where there is only noise, and the known posterior."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from opdscope.core.aggregation import Estimate
from opdscope.core.schedule import Schedule, distillation_weight
from opdscope.core.shrinkage import order_reliability, shrink
from opdscope.core.weighting import PartSums, cross_fit, fit_weights, gain_per_push, improvements, scale_to_push, weigh
from opdscope.errors import ShapeError

QUESTIONS, PARTS = 40, 4
PUSHES = np.array([0.2, 0.5, 1.0, 2.0])


def parts(rates: np.ndarray, noise: float, generator: np.random.Generator) -> PartSums:
    """Gains of given rate per squared push, with noise as large as the root of the push, as that of a covariance is."""
    pushes = generator.gamma(4.0, 0.25, size=(QUESTIONS, PARTS)) * PUSHES
    return PartSums(rates * pushes + noise * np.sqrt(pushes) * generator.normal(size=pushes.shape), pushes)


def held_out(sums: PartSums, generator: np.random.Generator) -> Estimate:
    fold = generator.permutation(QUESTIONS) % 2
    return improvements([cross_fit(sums, fold, 0.9)], 0.9, generator)[0]


def test_without_noise_no_weights_gain_more_per_push_than_the_fitted_ones() -> None:
    generator = np.random.default_rng(0)
    sums = parts(np.array([1.0, 0.4, 0.2, 0.05]), 1e-6, generator)
    fitted = gain_per_push(weigh(sums, fit_weights(sums, 0.9)).sum(axis=0)[:2])
    for _ in range(300):
        other = generator.uniform(0, 4, size=PARTS)
        assert gain_per_push(weigh(sums, other).sum(axis=0)[:2]) <= fitted * (1 + 1e-6)


def test_weights_follow_the_gain_per_squared_push_and_keep_the_size_of_the_push() -> None:
    sums = parts(np.array([0.9, 0.6, 0.3, 0.3]), 1e-6, np.random.default_rng(1))
    weights = fit_weights(sums, 0.9)
    # how pushes differ between questions leaves the differences an error of a few per cent even without noise, and so some shrinkage
    np.testing.assert_allclose(weights / weights[2], [3.0, 2.0, 1.0, 1.0], rtol=0.03)
    total = sums.pushes.sum(axis=0)
    np.testing.assert_allclose(np.sum(weights**2 * total), np.sum(total), rtol=1e-12)


def test_a_part_that_harms_gets_no_weight() -> None:
    assert fit_weights(parts(np.array([0.5, 0.5, 0.5, -0.2]), 0.05, np.random.default_rng(2)), 0.9)[3] == 0.0


def test_a_push_without_gain_is_not_weighted() -> None:
    assert fit_weights(parts(np.array([-0.5, -0.2, -0.1, -0.5]), 0.1, np.random.default_rng(3)), 0.9).tolist() == [1.0] * PARTS


def test_on_pure_noise_a_weighting_is_selected_no_more_often_than_the_bound_allows() -> None:
    repetitions, bound = 120, 0.05
    selected = 0
    for seed in range(repetitions):
        generator = np.random.default_rng(seed)
        candidates = []
        for _ in range(3):
            fold = generator.permutation(QUESTIONS) % 2
            candidates.append(cross_fit(parts(np.full(PARTS, 0.3), 1.0, generator), fold, 0.9))
        selected += any(estimate.low > 0 for estimate in improvements(candidates, 0.9, generator))
    # so many selections or more would come with a chance of 1 in 1,000 if the rate were the bound
    assert selected < binom.ppf(0.999, repetitions, bound)


def test_a_real_difference_is_found_on_held_out_questions() -> None:
    estimate = held_out(parts(np.array([2.0, 1.0, 0.3, 0.0]), 0.3, np.random.default_rng(4)), np.random.default_rng(5))
    assert estimate.low > 0


def test_the_held_out_change_of_equal_weights_is_zero() -> None:
    sums = parts(np.full(PARTS, 0.3), 0.0, np.random.default_rng(6))
    assert held_out(sums, np.random.default_rng(0)).value == pytest.approx(0.0, abs=1e-12)


def test_undefined_questions_have_no_say() -> None:
    sums = parts(np.array([0.9, 0.6, 0.3, 0.3]), 0.01, np.random.default_rng(7))
    gains, pushes = np.vstack([sums.gains, np.full(PARTS, np.nan)]), np.vstack([sums.pushes, np.ones(PARTS)])
    np.testing.assert_array_equal(fit_weights(PartSums(gains, pushes), 0.9), fit_weights(sums, 0.9))


def test_sums_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="question × part"):
        PartSums(np.ones((2, 3)), np.ones((2, 2)))


@given(st.lists(st.floats(0, 5), min_size=2, max_size=6), st.integers(0, 1000))
def test_scaled_weights_never_change_the_size_of_the_push(weights: list[float], seed: int) -> None:
    pushes = np.random.default_rng(seed).gamma(1.0, size=len(weights)) + 1e-3
    scaled = scale_to_push(np.array(weights), pushes)
    expected = pushes.sum() if np.sum(np.array(weights) ** 2 * pushes) > 0 else 0.0
    np.testing.assert_allclose(np.sum(scaled**2 * pushes), expected, rtol=1e-9)


def test_shrunken_numbers_have_a_smaller_error_and_their_intervals_cover() -> None:
    generator = np.random.default_rng(0)
    count, errors = 400, generator.uniform(0.3, 1.5, size=400)
    truth = 0.5 + 0.6 * generator.normal(size=count)
    values = truth + errors * generator.normal(size=count)
    shrunk = shrink(values, errors)
    assert np.mean((shrunk.mean - truth) ** 2) < 0.6 * np.mean((values - truth) ** 2)
    covered = np.sum(np.abs(truth - shrunk.mean) < 1.645 * shrunk.sd)
    assert binom.ppf(0.0005, count, 0.9) <= covered <= binom.ppf(0.9995, count, 0.9)


def test_numbers_that_noise_explains_become_one_and_sure_ones_stay() -> None:
    noise = shrink(np.array([0.1, -0.1, 0.05]), np.full(3, 1.0))
    assert np.ptp(noise.mean) == 0.0
    assert noise.reliability == 0.0
    assert order_reliability(noise, np.random.default_rng(0)) == 0.0
    np.testing.assert_allclose(shrink(np.array([1.0, 2.0, 5.0]), np.full(3, 1e-6)).mean, [1.0, 2.0, 5.0], rtol=1e-9)


def test_undefined_numbers_stay_undefined_and_move_no_other() -> None:
    values, errors = np.array([1.0, np.nan, 2.0, 4.0]), np.array([0.5, 0.5, np.nan, 0.5])
    shrunk = shrink(values, errors)
    assert np.isnan(shrunk.mean).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(shrunk.mean[[0, 3]], shrink(values[[0, 3]], errors[[0, 3]]).mean)
    assert np.isnan(shrink(np.array([np.nan]), np.array([1.0])).prior_mean)


def test_the_expected_rank_correlation_is_that_of_order_and_truth() -> None:
    generator, found, expected = np.random.default_rng(0), [], []
    for _ in range(60):
        truth = generator.normal(size=30)
        shrunk = shrink(truth + 0.7 * generator.normal(size=30), np.full(30, 0.7))
        if shrunk.prior_sd > 0:
            ranks = [np.argsort(np.argsort(x)) for x in (truth, shrunk.mean)]
            found.append(float(np.corrcoef(*ranks)[0, 1]))
            expected.append(order_reliability(shrunk, generator))
    # the standard error of the mean difference over sixty worlds, three times
    difference = np.array(found) - np.array(expected)
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference)) + 0.02


SCHEDULE = Schedule(start_success=0.4, start_gain=0.5, maximum=0.8, minimum=0.1)


@given(st.floats(0, 1), st.floats(-1, 2), st.floats(0, 0.3), st.floats(0, 1))
def test_the_distillation_weight_is_bounded_and_falls_with_success_and_with_a_lost_gain(
    success: float, gain: float, more: float, less: float
) -> None:
    weight = distillation_weight(SCHEDULE, success, gain)
    assert 0.1 <= weight <= 0.8
    assert distillation_weight(SCHEDULE, min(success + more, 1.0), gain) <= weight
    assert distillation_weight(SCHEDULE, success, gain - less) <= weight


def test_the_distillation_weight_is_the_maximum_at_the_diagnosis_and_zero_where_the_teacher_is_shown_to_harm() -> None:
    assert distillation_weight(SCHEDULE, 0.4, 0.5) == 0.8
    assert distillation_weight(SCHEDULE, float("nan"), float("nan")) == 0.8
    assert distillation_weight(SCHEDULE, 0.4, -0.1, gain_high=-0.01) == 0.0
    assert distillation_weight(SCHEDULE, 0.7, 0.25) == pytest.approx(0.8 * 0.5 * 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_success": 1.0, "start_gain": 0.1}, "start_success < ceiling"),
        ({"start_success": 0.5, "start_gain": 0.0}, "start_gain must be positive"),
        ({"start_success": 0.5, "start_gain": float("nan")}, "start_gain must be positive"),
        ({"start_success": 0.5, "start_gain": 0.1, "minimum": 2.0}, "minimum <= maximum"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)
