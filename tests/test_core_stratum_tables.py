"""Tabulated likelihoods of a stratum's outcomes, against the beta-binomial distribution itself."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import betabinom, binom

from opdscope.core.stratum_tables import CENTRES, STRENGTHS, tabulate
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError


def test_likelihoods_are_those_of_beta_binomial_outcomes():
    correct, count, tokens = np.array([[3, 0, 5]]), np.array([[8, 4, 5]]), np.array([[1.0, 1.0, 3.0]])
    table = tabulate(StratumOutcomes(correct, count, np.full((1, 3), np.nan)), tokens)
    mean = expit(CENTRES)[:, None]
    for j in range(3):
        total = tokens[0, j] * (STRENGTHS[:-1] + 1.0) - 1.0
        exact = betabinom.logpmf(correct[0, j], count[0, j], total * mean, total * (1.0 - mean))
        exact = np.concatenate([exact, binom.logpmf(correct[0, j], count[0, j], mean)], axis=1)
        # the coefficient is the same everywhere; float32
        found = table.rows[table.index[0, j]]
        np.testing.assert_allclose(found - found[0, 0], exact - exact[0, 0], rtol=1e-5, atol=1e-5)


def test_what_is_known_or_was_not_sampled_tells_nothing():
    outcomes = StratumOutcomes(np.array([[3, 0, 2]]), np.array([[5, 0, 4]]), np.array([[np.nan, np.nan, 1.0]]))
    table = tabulate(outcomes, np.ones((1, 3)))
    assert table.tells.tolist() == [[True, False, False]]
    assert np.abs(table.rows[table.index[0, 1:]]).max() == 0.0 < np.abs(table.rows[table.index[0, 0]]).min()
    with pytest.raises(ShapeError, match="same nodes and strata"):
        tabulate(outcomes, np.ones((1, 2)))
