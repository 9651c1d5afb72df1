"""Shortest intervals."""

import numpy as np
import pytest
from scipy.stats import beta, norm, uniform

from opdscope.core.shortest import shortest_interval


def brute_force(draws, level):
    """Every pair of ends in turn; n draws leave n + 1 gaps between -1 and 1, and an interval within the range has to have a few more."""

    def shortest(least):
        ends = [-1.0, *sorted(draws), 1.0]
        wide = [(ends[j] - ends[i], ends[i], ends[j]) for i in range(len(ends)) for j in range(i, len(ends)) if j - i >= least - 1e-9]
        return min(wide)[1:]

    count = len(draws)
    low, high = shortest(level * (count + 1))
    more = min(level * (count + 1) + 0.5 * np.sqrt(level * (1 - level) * count), count + 1)
    return shortest(more) if low > -1 and high < 1 else (low, high)


@pytest.mark.parametrize("count", [60, 3])
def test_the_shortest_interval_is_the_shortest_of_all(count):
    generator = np.random.default_rng(3)
    draws = np.tanh(generator.normal(generator.normal(size=12), 0.7, size=(count, 12)))
    draws[generator.random(draws.shape) < 0.1] = np.nan
    draws[:, -1] = np.nan
    found = shortest_interval(draws, 0.8)
    assert np.isnan(found[-1]).all()
    for column, (mean, low, high) in zip(draws.T[:-1], found[:-1], strict=True):
        use = column[~np.isnan(column)]
        assert mean == pytest.approx(use.mean(), rel=1e-12)
        assert (low, high) == pytest.approx(brute_force(use, 0.8), rel=1e-12)


@pytest.mark.parametrize(
    ("law", "errors"),
    [
        (uniform(-1, 2), -0.5),
        (norm(0, 0.2), 0.0),
        (beta(8, 3, loc=-1, scale=2), 0.0),
        (beta(5, 1, loc=-1, scale=2), 0.0),
        (beta(0.5, 0.3, loc=-1, scale=2), 0.0),
    ],
)
@pytest.mark.parametrize("count", [100, 400])
def test_an_interval_holds_as_much_of_the_posterior_as_it_says(law, errors, count):
    draws = np.clip(law.rvs(size=(count, 2000), random_state=np.random.default_rng(0)), -1.0, 1.0)
    _, low, high = shortest_interval(draws, 0.9).T
    held, error = np.mean(law.cdf(high) - law.cdf(low)), np.sqrt(0.09 / count)
    # a quarter of an error for what half an error is not exactly, four errors of a mean of 2,000 shares, and the part of a gap that is rounded up
    assert abs(held - 0.9 - errors * error) < 0.25 * error + 4 * error / np.sqrt(2000) + 1 / count


def test_intervals_of_a_sign_are_those_of_the_other_mirrored():
    draws = np.where(np.random.default_rng(0).random((400, 500)) < 0.94, 1.0, -1.0)
    mean, low, high = shortest_interval(draws, 0.9).T
    other_mean, other_low, other_high = shortest_interval(-draws, 0.9).T
    np.testing.assert_allclose(np.stack([mean, low, high]), -np.stack([other_mean, other_high, other_low]))
    # 360 of 400 draws have to have one sign: .94 of them do, with a deviation of 4.7, which is 3.4 of these more
    assert np.mean(low == high) > 0.99


def test_a_cosine_that_is_known_has_an_interval_of_no_width():
    assert shortest_interval(np.full((100, 1), 0.6), 0.9).tolist() == [[pytest.approx(0.6), 0.6, 0.6]]
