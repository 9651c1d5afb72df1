"""Errors of one question's gain: its own jackknife, an unbiased variance, and what the run's other questions say."""

import numpy as np
import pytest

from opdscope.core.screening import screening_gain
from opdscope.core.screening_errors import PRIOR_FREEDOM, moderated_errors, screening_error, screening_variance
from opdscope.errors import ShapeError


@pytest.mark.parametrize("count", [3, 9, 40])
def test_error_of_one_questions_gain_is_the_jackknifes_and_that_of_no_gain(count):
    generator = np.random.default_rng(count)
    outcomes = (np.arange(count) % 3 == 0).astype(float)
    outcomes[-1] = np.nan if count > 3 else outcomes[-1]  # left out
    pushes = generator.normal(size=(2, count))
    verified = np.flatnonzero(~np.isnan(outcomes))
    left_out = np.array([screening_gain(np.delete(outcomes, i), np.delete(pushes, i, axis=-1)) for i in verified])
    size = len(verified)
    jackknife = (size - 1) / size * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0)
    # two successes and two failures more, each as far from the mean as the average push
    squares = (pushes[:, verified] - pushes[:, verified].mean(axis=-1, keepdims=True)) ** 2
    squares = np.concatenate([squares, np.repeat(squares.sum(axis=-1, keepdims=True) / (size - 1), 4, axis=-1)], axis=-1)
    seen = np.concatenate([outcomes[verified], [1, 1, 0, 0]])
    without_gain = np.mean((seen - seen.mean()) ** 2 * squares, axis=-1) / (size - 1)
    expected = np.sqrt((size * jackknife + 8 * without_gain) / (size + 8))
    np.testing.assert_allclose(screening_error(outcomes, pushes), expected, rtol=1e-10)


def test_error_of_one_questions_gain_is_not_zero_where_outcomes_agree():
    assert np.all(screening_error(np.ones(6), np.random.default_rng(0).normal(size=(3, 6))) > 0.02)


def test_error_of_one_questions_gain_needs_three_verified_rollouts():
    assert np.isnan(screening_error(np.array([1.0, 0.0, np.nan]), np.ones((2, 3)))).all()


def test_several_questions_at_once_have_the_errors_of_each_alone():
    source = np.random.default_rng(5)
    outcomes = np.where(source.random((4, 9)) < 0.2, np.nan, (source.random((4, 9)) < 0.5).astype(float))
    pushes = source.normal(size=(2, 4, 9))
    for function in (screening_error, screening_variance):
        alone = np.stack(
            [function(outcomes[q][~np.isnan(outcomes[q])], pushes[:, q][:, ~np.isnan(outcomes[q])]) for q in range(4)], axis=-1
        )
        np.testing.assert_allclose(function(outcomes, pushes), alone, rtol=1e-12)


@pytest.mark.parametrize("count", [4, 8])
def test_the_variance_of_one_questions_gain_is_unbiased_where_outcome_and_push_go_together(count):
    source, repetitions = np.random.default_rng(count), 200_000
    outcomes = (source.random((repetitions, count)) < 0.7).astype(float)
    pushes = source.gumbel(size=(repetitions, count)) + 2.0 * outcomes
    gains, variances = screening_gain(outcomes, pushes), screening_variance(outcomes, pushes)
    # four standard errors: of the mean of the estimates, and of the variance that the gains show
    squares = (gains - gains.mean()) ** 2
    tolerance = 4 * np.hypot(variances.std(), squares.std()) / np.sqrt(repetitions)
    assert abs(variances.mean() - squares.mean()) < tolerance
    jackknife = np.mean(screening_error(outcomes, pushes) ** 2)
    assert jackknife - squares.mean() > 2 * tolerance  # which the cautious error is not


def test_a_variance_needs_four_verified_rollouts():
    assert np.isnan(screening_variance(np.array([1.0, 0.0, np.nan, 1.0]), np.ones(4)))


def test_errors_are_moderated_by_the_mean_ratio_of_variance_and_push():
    source = np.random.default_rng(1)
    outcomes = (source.random((6, 7)) < 0.5).astype(float)
    outcomes[0, 4:], outcomes[1, 2:] = np.nan, np.nan  # four verified rollouts, and two
    scale = np.array([1.0, 2.0, 0.5, 3.0, 1.5, 1.0])
    pushes = source.normal(size=(6, 7)) * scale[:, None]
    found = moderated_errors(outcomes, pushes, scale**2)
    known = [0, 2, 3, 4, 5]
    ratio = np.mean([screening_variance(outcomes[q], pushes[q]) / scale[q] ** 2 for q in known])
    freedom = np.array([3, 1, 6, 6, 6, 6])
    prior = [min(PRIOR_FREEDOM, sum(freedom[k] for k in known if k != q)) for q in range(6)]
    for q in known:
        own = screening_error(outcomes[q], pushes[q]) ** 2
        expected = (freedom[q] * own + prior[q] * ratio * scale[q] ** 2) / (freedom[q] + prior[q])
        assert found.error[q] == pytest.approx(np.sqrt(expected), rel=1e-12)
        assert found.freedom[q] == freedom[q] + prior[q]
    assert np.isnan(found.error[1])


def test_a_question_alone_has_its_own_error():
    outcomes, pushes = np.array([[1.0, 0.0, 1.0, 0.0, 1.0]]), np.random.default_rng(0).normal(size=(2, 1, 5))
    found = moderated_errors(outcomes, pushes, np.ones((2, 1)))
    np.testing.assert_allclose(found.error, screening_error(outcomes, pushes), rtol=1e-12)
    assert found.freedom.tolist() == [[4.0], [4.0]]


def test_a_teacher_that_pushes_nowhere_has_no_error():
    found = moderated_errors(np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]), np.zeros((2, 4)), np.zeros(2))
    assert found.error.tolist() == [0.0, 0.0]


def test_moderated_intervals_cover_on_average_where_the_gain_and_its_own_error_go_together():
    source, repetitions, questions, count = np.random.default_rng(2), 500, 12, 8
    outcomes = (source.random((repetitions, questions, count)) < 0.7).astype(float)
    pushes = 1.5 * (outcomes - 0.7) + source.normal(size=outcomes.shape)  # gain 1.5 · .21, variance 1 + 2.25 · .21
    held = []
    for one, push in zip(outcomes, pushes, strict=True):
        found = moderated_errors(one, push, np.full(questions, 1.0 + 2.25 * 0.21))
        # 1.70 to 1.71 are the quantiles of t with 27 to 31 degrees of freedom
        held.append(np.abs(screening_gain(one, push) - 1.5 * 0.21) <= 1.70 * found.error)
    # four standard errors of 6,000 intervals at 90 %, and two points for what an approximation may be off by
    assert abs(np.mean(held) - 0.9) < 4 * np.sqrt(0.09 / (repetitions * questions)) + 0.02


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ShapeError, match="one push per outcome"):
        screening_error(np.zeros(3), np.zeros((4, 2)))
    with pytest.raises(ShapeError, match="one push variance per question"):
        moderated_errors(np.zeros((2, 4)), np.zeros((2, 4)), np.zeros(3))
