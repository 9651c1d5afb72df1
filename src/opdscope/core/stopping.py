"""Looking at results while they come in, and stopping when a decision stands, without paying for it in wrong decisions.

Whoever looks several times and stops at the first clear sign is wrong more often than each look's interval says. So the permitted error is spent
over the looks: all intervals of all looks hold together at the confidence that was asked for, whatever rule ends the sampling.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

_LEAST_ROLLOUTS = 4
"""Rollouts a question at the first look: fewer say nothing about how they differ."""


def look_sizes(most: int, looks: int) -> tuple[int, ...]:
    """Rollouts a question at each look: doubling up to `most`, at most so many looks, none with fewer than four rollouts.

    Example:
        >>> look_sizes(64, 4), look_sizes(10, 4), look_sizes(2, 4)
        ((8, 16, 32, 64), (5, 10), (2,))
    """
    halved = [most // 2**k for k in range(looks)]
    return (*sorted(n for n in halved[1:] if n >= _LEAST_ROLLOUTS), most)


def spending_widths(
    looks: Sequence[Float[np.ndarray, "cluster test"]],
    num_looks: int,
    confidence: float,
    generator: np.random.Generator,
    num_draws: int = 10_000,
) -> Float[np.ndarray, "look"]:
    r"""How many standard errors wide the intervals of each look must be, so that those of all looks hold together.

    Args:
        looks: Per look taken so far, one row per question and one column per mean; NaN where a question says nothing about a mean. Rows are the
            same questions at every look. Columns may differ.
        num_looks: Most looks that will be taken; fixed before the first one.
        confidence: Chance that every interval of every look holds its truth, in (0, 1).
        generator: Source of randomness; with the same seed the widths of the first looks do not change when another one is taken.
        num_draws: Draws from the joint distribution.

    Returns:
        Half-widths in standard errors; infinite while nothing may be spent yet; NaN at and after a look with a mean of fewer than two questions.

    Raises:
        ValueError: If there are more looks than `num_looks`.

    Notes:
        By look k of K at most :math:`\alpha k / K` is spent: the width is the smallest with
        :math:`P(\exists l \le k: \max_j |T_{lj}| > c_l) \le \alpha k / K`. T is multivariate Student, correlated over means and looks as the
        questions' residuals are, drawn by giving each question a normal multiplier. Looks share questions and rollouts and so go together,
        which Bonferroni over looks and means would ignore.

    References:
        Lan and DeMets (1983), Discrete sequential boundaries for clinical trials; Chernozhukov, Chetverikov and Kato (2013), for the multipliers.

    Example:
        >>> column = np.random.default_rng(0).normal(size=(20, 1))
        >>> widths = spending_widths([column, column], 2, 0.9, np.random.default_rng(1))
        >>> bool(abs(widths[0] - 2.093) < 0.06)  # half of the error: the 97.5 % point of t with 19 degrees of freedom
        True
    """
    boundary = SpendingBoundary(num_looks, confidence, generator, num_draws)
    return np.array([boundary.width(values) for values in looks])


class SpendingBoundary:
    """Widths of :func:`spending_widths`, one look after another, while the looks are taken."""

    def __init__(self, num_looks: int, confidence: float, generator: np.random.Generator, num_draws: int = 10_000) -> None:
        """Before the first look; arguments as there."""
        self._num_looks, self._error, self._generator, self._num_draws = num_looks, 1.0 - confidence, generator, num_draws
        self._taken = 0
        self._multipliers = self._scale = np.zeros(0)
        self._crossed = np.zeros(num_draws, dtype=bool)

    def width(self, values: Float[np.ndarray, "cluster test"]) -> float:
        """That of the next look; infinite while nothing may be spent yet, NaN at and after a look with a mean of fewer than two questions.

        Args:
            values: One row per question, the same ones at every look, and one column per mean; NaN where a question says nothing about a mean.

        Returns:
            Half-width in standard errors.

        Raises:
            ValueError: If there are more looks than were planned.
        """
        self._taken += 1
        if self._taken > self._num_looks:
            raise ValueError(f"expected at most num_looks = {self._num_looks} looks, found {self._taken}")
        present = ~np.isnan(values)
        fewest = int(present.sum(axis=0).min(initial=len(values)))
        if self._taken == 1:
            self._multipliers = self._generator.standard_normal((self._num_draws, len(values)))
            # one number a draw, so that the widths of a look depend on that look and those before it alone; freedom is that of the first look:
            # questions do not become fewer later, and widths must not change when a look is added
            freedom = max(fewest - 1, 1)
            self._scale = np.sqrt(self._generator.chisquare(freedom, size=self._num_draws) / freedom)
        if values.shape[1] == 0 or fewest < 2:
            self._error = float("nan")
        if np.isnan(self._error):
            return float("nan")
        # means first: to reduce many rows of a few entries each takes twenty times as long
        largest = np.max(np.abs(self._multipliers @ _directions(values)).T.copy(), axis=0) / self._scale
        allowed = int(np.floor(self._error * self._taken / self._num_looks * self._num_draws)) - int(self._crossed.sum())
        left = largest[~self._crossed]
        place = len(left) - 1 - allowed
        width = float(np.partition(left, place)[place]) if 0 <= allowed < len(left) else float("inf")
        self._crossed |= largest > width
        return width


def _directions(values: Float[np.ndarray, "cluster test"]) -> Float[np.ndarray, "cluster test"]:
    """Residuals of each mean scaled to length one; zero where they have none: such an interval has width zero whatever the quantile."""
    present = ~np.isnan(values)
    means = np.sum(np.where(present, values, 0.0), axis=0) / present.sum(axis=0)
    residuals = np.where(present, values - means, 0.0)
    size = np.sqrt(np.sum(residuals**2, axis=0))
    return residuals / np.where(size > 0, size, 1.0)


def settled(
    estimate: Float[np.ndarray, "*batch"], half_width: Float[np.ndarray, "*batch"], indifference: float
) -> Bool[np.ndarray, "*batch"]:
    """Whether intervals decide: they exclude zero, or lie within what makes no difference. Never where they are undefined.

    Example:
        >>> settled(np.array([0.3, 0.0, 0.1]), np.array([0.2, 0.04, 0.2]), 0.05).tolist()
        [True, True, False]
    """
    with np.errstate(invalid="ignore"):
        return (np.abs(estimate) > half_width) | (np.abs(estimate) + half_width <= indifference)


def standard_error_at(
    values: Float[np.ndarray, "cluster test"], within: Float[np.ndarray, "test"], factor: float
) -> Float[np.ndarray, "test"]:
    r"""Standard error that means over the same questions are foretold to have with more rollouts.

    Args:
        values: One row per question, one column per mean.
        within: Mean over questions of the part of a value's variance that comes from its rollouts.
        factor: How many times more rollouts.

    Returns:
        :math:`\sqrt{(s^2 - w (1 - 1/\text{factor}))^+ / n}`, at least what remains if rollouts are all that differs.

    Example:
        >>> values = np.array([[0.0], [2.0], [0.0], [2.0]])
        >>> standard_error_at(values, np.array([1.0]), 4.0).round(3).tolist()
        [0.382]
    """
    count = np.maximum((~np.isnan(values)).sum(axis=0), 2)
    variance = np.nanvar(values, axis=0, ddof=1)
    foretold = np.maximum(variance - within * (1.0 - 1.0 / factor), np.minimum(within, variance) / factor)
    return np.sqrt(foretold / count)
