"""Shortest intervals."""

import numpy as np
import pytest
from scipy.stats import beta, norm, uniform

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


def test_every_second_draw_says_which_interval_is_the_shortest():
    generator = np.random.default_rng(3)
    half = np.tanh(generator.normal(generator.normal(size=12), 0.7, size=(60, 12)))
    half[generator.random(half.shape) < 0.1] = np.nan
    half[:, -1] = np.nan
    # each draw twice: both halves are the same, and the interval is the shortest of all
    found = shortest_interval(np.repeat(half, 2, axis=0), 0.8)
    assert np.isnan(found[-1]).all()
    for column, (mean, low, high) in zip(half.T[:-1], found[:-1], strict=True):
        use = column[~np.isnan(column)]
        assert mean == pytest.approx(use.mean(), rel=1e-12)
        assert (low, high) == pytest.approx(brute_force(use, 0.8), rel=1e-12)


@pytest.mark.parametrize(
    "law", [uniform(-1, 2), norm(0, 0.2), beta(8, 3, loc=-1, scale=2), beta(0.5, 0.3, loc=-1, scale=2), beta(5, 1, loc=-1, scale=2)]
)
def test_an_interval_holds_as_much_of_the_posterior_as_it_says(law):
    draws = np.clip(law.rvs(size=(400, 2000), random_state=np.random.default_rng(0)), -1.0, 1.0)
    _, low, high = shortest_interval(draws, 0.9).T
    held = law.cdf(high) - law.cdf(low)
    # between 181 of 201 gaps lies .9005 on average, with a deviation of .021; four of its errors. The shortest of all held .885 to .90
    assert abs(np.mean(held) - 0.9005) < 4 * 0.021 / np.sqrt(2000)


def test_where_one_half_has_no_direction_nothing_is_known():
    draws = np.full((100, 2), np.nan)
    draws[::2, 0], draws[1::2, 1] = 0.5, 0.5
    assert shortest_interval(draws, 0.9)[0].tolist() == [0.5, -1.0, 1.0]
    assert shortest_interval(draws, 0.9)[1].tolist() == [0.5, -1.0, 0.5]


def test_a_cosine_that_is_known_has_an_interval_of_no_width():
    assert shortest_interval(np.full((100, 1), 0.6), 0.9).tolist() == [[pytest.approx(0.6), 0.6, 0.6]]
