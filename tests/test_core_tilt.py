"""The tilt of a prior by what a teacher knows, and shortest intervals."""

import numpy as np
import pytest

from opdscope.core.tilt import fit_tilt, shortest_interval, tilted_weights
from opdscope.errors import ShapeError


@pytest.mark.parametrize("truth", [-1.5, 0.0, 0.7])
def test_a_tilt_of_a_normal_prior_is_found(truth):
    """exp(λ x) moves the standard normal distribution by λ; 2,000 nodes seen with as much noise, so that λ has a standard error of .03."""
    generator = np.random.default_rng(0)
    seen = generator.normal(truth, np.sqrt(2.0), size=2000)
    posterior = generator.normal(seen / 2, np.sqrt(0.5), size=(400, 2000))[..., None]
    prior = generator.normal(size=(400, 2000, 1))
    (found,) = fit_tilt(posterior, prior)
    # four standard errors, and a twentieth for 400 draws, which hold few where a far tilt moves the mass to
    assert abs(found - truth) < 0.13 + 0.05 * abs(truth)
    weights = tilted_weights(posterior, np.array([truth]))[...]
    assert weights.max(axis=0).tolist() == [1.0] * 2000
    means = np.sum(weights * posterior[..., 0], axis=0) / weights.sum(axis=0)
    # the mean of posterior means is the tilted prior's mean: standard error 1 / √2 / √2,000
    assert abs(means.mean() - truth) < 4 * 0.016 + 0.05 * abs(truth)


def test_features_in_other_units_give_the_same_tilt():
    generator = np.random.default_rng(1)
    posterior, prior = generator.normal(0.3, 1.0, size=(100, 50, 2)), generator.normal(size=(100, 50, 2))
    units = np.array([1e-3, 50.0])
    np.testing.assert_allclose(fit_tilt(posterior * units, prior * units) * units, fit_tilt(posterior, prior), rtol=1e-4, atol=1e-5)


def test_without_evidence_there_is_no_tilt():
    generator = np.random.default_rng(2)
    same = generator.normal(size=(50, 20, 1))
    np.testing.assert_allclose(fit_tilt(same, same), 0.0, atol=1e-9)
    assert fit_tilt(np.zeros((50, 20, 1)), np.zeros((50, 20, 1))).tolist() == [0.0]
    assert fit_tilt(np.zeros((50, 0, 2)), np.zeros((20, 0, 2))).tolist() == [0.0, 0.0]
    with pytest.raises(ShapeError, match="same nodes and features"):
        fit_tilt(np.zeros((50, 3, 2)), np.zeros((50, 4, 2)))


def brute_force(draws, weights, level):
    """Every pair of draws in turn."""
    order = np.argsort(draws)
    x, w = draws[order], weights[order] / weights.sum()
    best = (np.inf, np.nan, np.nan)
    for i in range(len(x)):
        for j in range(i, len(x)):
            if w[i : j + 1].sum() >= level - 1e-12:
                low, high = -1.0 if i == 0 else x[i], 1.0 if j == len(x) - 1 else x[j]
                best = min(best, (high - low, low, high))
                break
    return best[1:]


def test_the_shortest_interval_is_the_shortest_of_all():
    generator = np.random.default_rng(3)
    draws = np.tanh(generator.normal(generator.normal(size=12), 0.7, size=(60, 12)))
    weights = generator.exponential(size=draws.shape)
    draws[generator.random(draws.shape) < 0.1] = np.nan
    draws[:, -1] = np.nan
    found = shortest_interval(draws, weights, 0.8)
    assert np.isnan(found[-1]).all()
    for column, own, (mean, low, high) in zip(draws.T[:-1], weights.T[:-1], found[:-1], strict=True):
        use = ~np.isnan(column)
        assert mean == pytest.approx(np.average(column[use], weights=own[use]), rel=1e-12)
        assert (low, high) == pytest.approx(brute_force(column[use], own[use], 0.8), rel=1e-12)


def test_a_cosine_that_is_known_has_an_interval_of_no_width():
    assert shortest_interval(np.full((100, 1), 0.6), np.ones((100, 1)), 0.9).tolist() == [[pytest.approx(0.6), 0.6, 0.6]]
