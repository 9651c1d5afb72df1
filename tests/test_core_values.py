"""A fitted value of a prefix knows nothing of its own question, and leaves the gain's mean as it is."""

import numpy as np
import pytest

from opdscope.core.values import cross_fitted_values


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
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    design = np.concatenate([np.ones((40, 1)), scaled], axis=1)
    own, rest = fold == 0, fold == 1
    penalty = np.sqrt(2.0) * np.eye(4)[1:]
    expected = np.linalg.lstsq(np.concatenate([design[rest], penalty]), np.concatenate([outcomes[rest], np.zeros(3)]), rcond=None)[0]
    found = cross_fitted_values(features, outcomes, fold, ridge=2.0)
    np.testing.assert_allclose(found[own], np.clip(design[own] @ expected, 0, 1), atol=1e-9)


@pytest.mark.parametrize("fold", [np.zeros(4, dtype=np.int64)])
def test_one_fold_alone_gets_the_mean(fold: np.ndarray) -> None:
    assert cross_fitted_values(np.ones((4, 1)), np.array([1.0, 0.0, 1.0, 1.0]), fold).tolist() == [0.75] * 4
