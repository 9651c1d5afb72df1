"""A fitted value of a prefix knows nothing of its own question, and leaves the gain's mean as it is."""

from pathlib import Path

import numpy as np
import pytest

import opdscope
from opdscope.core.divergences import reverse_kl_signal
from opdscope.core.screening import screening_gain, value_corrections
from opdscope.core.values import cross_fitted_values, prefix_features, success_log_odds
from opdscope.models.exact import ReasoningWorld
from opdscope.summary.teachers import screen_questions


def test_a_prediction_does_not_depend_on_outcomes_of_its_own_fold() -> None:
    source = np.random.default_rng(0)
    features, fold = source.normal(size=(60, 2)), np.repeat(np.arange(3), 20)
    outcomes = (source.random(60) < 0.5).astype(np.float64)
    turned = np.where(fold == 1, 1.0 - outcomes, outcomes)
    same, other = (cross_fitted_values(features, values, fold) for values in (outcomes, turned))
    np.testing.assert_allclose(same[fold == 1], other[fold == 1], atol=1e-12)
    assert np.max(np.abs(same[fold != 1] - other[fold != 1])) > 1e-3


def test_it_is_ridge_regression_on_the_other_folds() -> None:
    source = np.random.default_rng(1)
    features, fold = source.normal(size=(40, 3)), np.repeat([0, 1], 20)
    outcomes = np.clip(0.5 + features @ [0.1, -0.05, 0.0], 0, 1)
    own, rest = fold == 0, fold == 1
    # scaled by what the other fold shows: a row's own features may not shape the regression that is applied to it
    scaled = (features - features[rest].mean(axis=0)) / features[rest].std(axis=0)
    design = np.concatenate([np.ones((40, 1)), scaled], axis=1)
    penalty = np.sqrt(2.0) * np.eye(4)[1:]
    expected = np.linalg.lstsq(np.concatenate([design[rest], penalty]), np.concatenate([outcomes[rest], np.zeros(3)]), rcond=None)[0]
    found = cross_fitted_values(features, outcomes, fold, ridge=2.0)
    np.testing.assert_allclose(found[own], np.clip(design[own] @ expected, 0, 1), atol=1e-9)


@pytest.mark.parametrize("fold", [np.zeros(4, dtype=np.int64)])
def test_one_fold_alone_gets_the_mean(fold: np.ndarray) -> None:
    assert cross_fitted_values(np.ones((4, 1)), np.array([1.0, 0.0, 1.0, 1.0]), fold).tolist() == [0.75] * 4


def test_a_row_without_an_outcome_is_foretold_and_changes_nothing() -> None:
    source = np.random.default_rng(2)
    features, fold, outcomes = source.normal(size=(40, 2)), np.repeat([0, 1], 20), np.repeat([0.0, 1.0], 20)
    outcomes = source.permutation(outcomes)
    unknown = np.where(np.arange(40) % 5 == 0, np.nan, outcomes)
    found = cross_fitted_values(features, unknown, fold)
    known = ~np.isnan(unknown)
    np.testing.assert_allclose(found[known], cross_fitted_values(features[known], outcomes[known], fold[known]), atol=1e-12)
    assert np.isfinite(found).all()


def test_no_feature_knows_the_token_that_is_judged_or_a_later_one() -> None:
    source = np.random.default_rng(3)
    logprob, ratios = -source.random((2, 6)), source.normal(size=(3, 2, 6))
    later = np.arange(6) >= 4
    turned = prefix_features(np.zeros(2), np.ones((2, 6)), np.where(later, -9.0, logprob), np.where(later, 9.0, ratios))
    same = prefix_features(np.zeros(2), np.ones((2, 6)), logprob, ratios)
    np.testing.assert_array_equal(turned[:, :5], same[:, :5])
    assert not np.allclose(turned[:, 5], same[:, 5])


def test_a_rollouts_own_outcome_is_not_in_its_share() -> None:
    one, other = success_log_odds(np.array([1.0, 1.0, 0.0, np.nan])), success_log_odds(np.array([0.0, 1.0, 0.0, np.nan]))
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_values_equal_to_the_baseline_correct_nothing() -> None:
    source = np.random.default_rng(4)
    outcomes, signal = np.array([1.0, 0.0, 1.0, np.nan]), source.normal(size=(4, 5))
    baseline = np.array([1 / 2, 1.0, 1 / 2, 2 / 3])
    np.testing.assert_allclose(value_corrections(outcomes, signal.sum(axis=1), baseline * signal.sum(axis=1)), 0.0, atol=1e-12)


def test_the_exact_value_of_each_prefix_leaves_the_mean_of_the_gain() -> None:
    world, source, count, each = ReasoningWorld(length=12, spacing=3), np.random.default_rng(5), 1500, 4
    student, following, success = world.student(1), world.next_states(), world.success(1)
    probs = np.exp(student)
    signal = reverse_kl_signal(student, world.teacher("good", 1))
    signal = signal - np.sum(probs * signal, axis=-1, keepdims=True)
    state = np.zeros(count * each, dtype=np.int64)
    pushed, weighted = np.zeros((2, count * each))
    for position in range(len(student)):
        rows = np.cumsum(probs[position, state], axis=-1)
        token = np.sum(rows <= source.random((count * each, 1)) * rows[:, -1:], axis=-1)
        own = signal[position, state, token]
        pushed += own
        weighted += own * np.sum(probs * success, axis=-1)[position, state]
        state = following[position, state, token]
    outcomes, pushes, weights = ((values.reshape(count, each)) for values in ((token == 0).astype(np.float64), pushed, weighted))
    gains = np.array([screening_gain(r, f) - value_corrections(r, f, w).mean() for r, f, w in zip(outcomes, pushes, weights, strict=True)])
    # four standard errors of the mean
    assert abs(gains.mean() - world.natural_gain(1, "good", "reverse_kl")) < 4 * gains.std() / np.sqrt(count)


def test_the_gain_with_fitted_values_is_nearer_to_the_truth(tmp_path: Path) -> None:
    world = ReasoningWorld(length=18)
    run = opdscope.screen(
        {
            "student": {"model_name_or_path": "exact:itself"},
            "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "weak")],
            "task": {"kind": "exact", "num_questions": 40, "length": 18},
            "objectives": ["reverse_kl"],
            "rollouts": {"num_rollouts": 32, "num_demonstrations": 0, "max_completion_length": 19},
        },
        run_dir=tmp_path / "run",
    )
    tables = run.tables()
    plain, fitted, both = (screen_questions(tables, *how) for how in ((), ((), ["weak teacher"]), (["good teacher"], ["weak teacher"])))
    truth = np.array([world.natural_gain(question, "good", "reverse_kl") for question in range(40)])
    errors = [np.mean((found["good teacher", "reverse_kl"].natural_gain - truth) ** 2) for found in (plain, fitted, both)]
    # the answer-conditioned student's log-odds explain three tenths of the noise here (docs/economy.md)
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 0.95 * errors[0]
