"""Shortest intervals."""

import numpy as np
import pytest

from opdscope.core.shortest import shortest_interval


def brute_force(draws, level):
    """Every pair of ends in turn; n draws leave n + 1 gaps between -1 and 1."""
    ends = [-1.0, *sorted(draws), 1.0]
    best = (np.inf, np.nan, np.nan)
    for i in range(len(ends)):
        for j in range(i, len(ends)):
            if j - i >= level * (len(draws) + 1) - 1e-9:
                best = min(best, (ends[j] - ends[i], ends[i], ends[j]))
    return best[1:]


def test_the_shortest_interval_is_the_shortest_of_all():
    generator = np.random.default_rng(3)
    draws = np.tanh(generator.normal(generator.normal(size=12), 0.7, size=(60, 12)))
    draws[generator.random(draws.shape) < 0.1] = np.nan
    draws[:, -1] = np.nan
    found = shortest_interval(draws, 0.8)
    assert np.isnan(found[-1]).all()
    for column, (mean, low, high) in zip(draws.T[:-1], found[:-1], strict=True):
        use = column[~np.isnan(column)]
        assert mean == pytest.approx(use.mean(), rel=1e-12)
        assert (low, high) == pytest.approx(brute_force(use, 0.8), rel=1e-12)


def test_a_cosine_that_is_known_has_an_interval_of_no_width():
    assert shortest_interval(np.full((100, 1), 0.6), 0.9).tolist() == [[pytest.approx(0.6), 0.6, 0.6]]
