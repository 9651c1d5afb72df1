"""Live gains: unbiased where the truth is known, intervals that cover, and a series that forgets."""

import numpy as np
import pytest

from opdscope.core.screening import screening_gain
from opdscope.core.screening_errors import screening_error
from opdscope.core.streaming import Series, combined_error, sharpening_factor, step_gain
from opdscope.errors import ShapeError

NUM_STEPS, NUM_ROLLOUTS = 1500, 16


def draw(rng: np.random.Generator, per_question: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions of different difficulty; F is a standard normal push that shifts success by 0.1 of itself."""
    questions = np.repeat(np.arange(NUM_ROLLOUTS // per_question), per_question)
    base = rng.uniform(0.3, 0.7, size=NUM_ROLLOUTS // per_question)[questions]
    pushes = rng.normal(size=NUM_ROLLOUTS).clip(-2, 2)
    outcomes = (rng.random(NUM_ROLLOUTS) < base + 0.1 * pushes).astype(float)
    return outcomes, questions, pushes[None]


def truth() -> float:
    return 0.1 * float(np.mean(np.random.default_rng(9).normal(size=1_000_000).clip(-2, 2) ** 2))


@pytest.mark.parametrize("per_question", [1, 4])
def test_a_steps_gain_is_unbiased_with_one_rollout_a_question_and_with_several(per_question: int):
    rng = np.random.default_rng(per_question)
    gains = [step_gain(*draw(rng, per_question)) for _ in range(NUM_STEPS)]
    values, errors = (np.array([getattr(gain, name)[0] for gain in gains]) for name in ("value", "error"))
    assert abs(values.mean() - truth()) < 4 * values.std() / np.sqrt(NUM_STEPS)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.15)  # errors are cautious, see screening_error


def test_the_series_interval_covers_the_weighted_mean():
    rng = np.random.default_rng(5)
    covered, trials = 0, 100
    for _ in range(trials):
        series = Series(0.9)
        for _ in range(20):
            gain = step_gain(*draw(rng, 1))
            series = series.advance(gain.value, gain.error, gain.num_verified)
        covered += abs(series.mean[0] - truth()) < 1.645 * series.error[0]
    deviation = np.sqrt(0.9 * 0.1 / trials)
    assert 0.9 - 3 * deviation < covered / trials <= min(1.0, 0.9 + 5 * deviation)


def test_few_rollouts_a_question_share_a_baseline():
    outcomes, questions, pushes = np.array([1.0, 0.0, 1.0, np.nan]), np.array([0, 0, 1, 1]), np.array([[1.0, -1.0, 0.5, 9.0]])
    gain = step_gain(outcomes, questions, pushes)
    assert gain.value == pytest.approx(screening_gain(outcomes, pushes))
    assert gain.error == pytest.approx(screening_error(outcomes, pushes))
    assert gain.num_verified == 3


def test_a_series_weighs_recent_and_larger_steps_more():
    series = Series(0.5).advance(np.array([0.0]), np.array([1.0]), 1).advance(np.array([1.0]), np.array([1.0]), 2)
    assert series.mean == pytest.approx(2 / 2.5)
    assert series.error == pytest.approx(np.sqrt(0.5**2 + 2**2) / 2.5)
    assert series.num_steps == pytest.approx(2.5**2 / 4.25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_undefined_step_changes_nothing(value: float):
    series = Series(0.5).advance(np.array([1.0]), np.array([0.1]), 4)
    assert series.advance(np.array([value]), np.array([0.1]), 4) is series
    assert series.advance(np.array([1.0]), np.array([np.nan]), 4) is series


def test_the_error_of_a_difference_knows_the_covariance():
    rng = np.random.default_rng(0)
    first, second = rng.multivariate_normal([0, 0], [[1.0, 0.6], [0.6, 2.0]], size=200_000).T
    found = combined_error(first.std(), second.std(), (first - second).std(), 0.7)
    assert found == pytest.approx((first - 0.7 * second).std(), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.95, 1.05])
def test_the_sharpening_factor_is_that_of_the_temperature_with_the_same_divergence(temperature: float):
    p = np.array([0.6, 0.3, 0.1])
    q = p ** (1 / temperature)
    q /= q.sum()
    divergence, variance = float(p @ np.log(p / q)), float(p @ (np.log(p) - p @ np.log(p)) ** 2)
    assert sharpening_factor(divergence, variance) == pytest.approx(abs(1 / temperature - 1), rel=0.05)
    assert sharpening_factor(-1e-9, 1.0) == 0.0


def test_arrays_that_do_not_agree_are_refused():
    with pytest.raises(ShapeError, match="found 2 and 3"):
        step_gain(np.zeros(3), np.zeros(2, dtype=int), np.zeros((1, 3)))
