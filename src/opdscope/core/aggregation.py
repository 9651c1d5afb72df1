"""From nodes and questions to one number with an interval: sums per question, then statistics clustered by question.

Teachers share one set of continuations and tokens share one rollout, so neither is an independent sample. Questions are: every average here
is a function of per-question sums, and its uncertainty comes from how these differ.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from opdscope.errors import ShapeError


@dataclass(frozen=True)
class Estimate:
    """A number that rests on samples, with its interval."""

    value: float
    """Point estimate; NaN if undefined."""
    low: float
    """Lower end of the interval; NaN if fewer than two clusters."""
    high: float
    """Upper end."""
    standard_error: float
    """Standard error, clustered by question; NaN if the interval does not come from one."""
    num_clusters: int
    """Questions with a defined contribution."""
    confidence: float
    """Level of the interval."""


def clustered_mean(values: Float[np.ndarray, "cluster"], confidence: float) -> Estimate:
    r"""Mean over questions, each with equal weight, and a Student-t interval.

    Args:
        values: One number per question; NaN is undefined and not counted.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The estimate; its interval is NaN with fewer than two questions.

    Example:
        >>> estimate = clustered_mean(np.array([0.0, 1.0, np.nan]), 0.9)
        >>> estimate.value, estimate.num_clusters
        (0.5, 2)
    """
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return _interval(np.nan, np.nan, 0, confidence)
    error = float(np.std(defined, ddof=1) / np.sqrt(len(defined))) if len(defined) >= 2 else np.nan
    return _interval(float(np.mean(defined)), error, len(defined), confidence)


def clustered_statistic(
    sums: Float[np.ndarray, "cluster component"],
    statistic: Callable[[Float[np.ndarray, "component"]], float],
    confidence: float,
) -> Estimate:
    r"""A function of totals over questions, such as a ratio, with a jackknife interval that leaves out one question at a time.

    Args:
        sums: Weighted sums of each question; rows with a NaN are undefined and not counted.
        statistic: From the totals to the number, for example `lambda s: s[0] / s[1]`; may return NaN.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The estimate at the totals over all questions.

    Raises:
        ShapeError: If `sums` is not two-dimensional.

    Notes:
        :math:`\widehat{\operatorname{Var}} = \frac{n-1}{n} \sum_i (\hat\theta_{(i)} - \bar\theta_{(\cdot)})^2`.

    References:
        Efron and Stein (1981), The jackknife estimate of variance.

    Example:
        >>> round(clustered_statistic(np.array([[1.0, 2.0], [2.0, 2.0]]), lambda s: float(s[0] / s[1]), 0.9).value, 3)
        0.75
    """
    if sums.ndim != 2:
        raise ShapeError(f"expected sums as cluster × component, found {sums.ndim} axes")
    defined = sums[~np.isnan(sums).any(axis=1)]
    count = len(defined)
    if count == 0:
        return _interval(np.nan, np.nan, 0, confidence)
    total = defined.sum(axis=0)
    value = statistic(total)
    if count < 2:
        return _interval(value, np.nan, count, confidence)
    left_out = np.array([statistic(total - row) for row in defined])
    error = float(np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)))
    return _interval(value, error, count, confidence)


def simultaneous_quantile(
    values: Float[np.ndarray, "cluster test"],
    confidence: float,
    generator: np.random.Generator,
    num_draws: int = 10_000,
    freedom: float | None = None,
) -> float:
    r"""How many standard errors each of several means must be wide, so that all their intervals hold together.

    Args:
        values: One column per mean, one row per question; NaN where a question says nothing about a mean.
        confidence: Chance that every interval holds its truth, in (0, 1).
        generator: Source of randomness.
        num_draws: Draws that the quantile is taken from.
        freedom: Degrees of freedom; None takes the fewest questions of any mean, less one.

    Returns:
        Half-width in standard errors, between the single interval's and Bonferroni's; NaN if some mean has fewer than two questions.

    Notes:
        The quantile of :math:`\max_k |T_k|` with T multivariate Student, correlated as the columns are. Teachers are compared on the same
        rollouts, so their differences go together, and Bonferroni would be wider than it has to be.

    References:
        Hothorn, Bretz and Westfall (2008), Simultaneous inference in general parametric models.

    Example:
        >>> column = np.random.default_rng(0).normal(size=(20, 1))
        >>> same = simultaneous_quantile(np.repeat(column, 3, axis=1), 0.9, np.random.default_rng(1))
        >>> bool(abs(same - 1.729) < 0.05)  # three copies of one mean are one mean: t with 19 degrees of freedom
        True
    """
    present = ~np.isnan(values)
    counts = present.sum(axis=0)
    if len(counts) == 0 or counts.min() < 2:
        return float("nan")
    means = np.sum(np.where(present, values, 0.0), axis=0) / counts
    residuals = np.where(present, values - means, 0.0)
    size = np.sqrt(np.sum(residuals**2, axis=0))
    # a column without spread has intervals of width zero and goes with no other
    correlation = (residuals.T @ residuals) / np.where(size > 0, size, 1.0) / np.where(size > 0, size, 1.0)[:, None]
    eigenvalues, vectors = np.linalg.eigh(correlation)
    normal = generator.standard_normal((num_draws, len(counts))) @ (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))).T
    freedom = int(counts.min()) - 1 if freedom is None else freedom
    student = normal / np.sqrt(generator.chisquare(freedom, size=(num_draws, 1)) / freedom)
    return float(np.quantile(np.max(np.abs(student), axis=1), confidence))


def simultaneous_interval(estimate: Estimate, width: float) -> Estimate:
    """The estimate with an interval of `width` standard errors to either side, from :func:`simultaneous_quantile`."""
    half = width * estimate.standard_error
    return replace(estimate, low=estimate.value - half, high=estimate.value + half)


def ratio(sums: Float[np.ndarray, "component"]) -> float:
    """First total over second: the Hájek mean where the second is the sum of weights; NaN if the weights sum to zero."""
    return float(sums[0] / sums[1]) if sums[1] != 0 else float("nan")


_COSINES = np.linspace(-1.0, 1.0, 401)
"""Values that are tried for a pooled cosine."""


def pooled_cosine(sums: Float[np.ndarray, "cluster 3"], confidence: float) -> Estimate:
    r"""Pooled alignment from each question's sums of ⟨g*, d⟩, noise-corrected ‖g*‖² and ‖d‖², with every value that they leave possible.

    Args:
        sums: Weighted sums of each question; rows with a NaN are undefined and not counted.
        confidence: Level of the interval, in (0, 1).

    Returns:
        :math:`\sum\langle g^*, d\rangle / \sqrt{\sum\|g^*\|^2 \sum\|d\|^2}`, cut to [-1, 1]; NaN where the corrected norm is not positive: then
        noise is all there is, and the interval, which does not need it, is wide. It has no standard error (NaN).

    Raises:
        ShapeError: If `sums` is not cluster × 3.

    Notes:
        The corrected norm is itself an estimate that may come near zero, where a ratio has no standard error worth the name. So each c in
        [-1, 1] is tested instead: :math:`N|N| - c|c| D_1 D_2` has mean near zero if c is the truth, is smooth in the totals, and has a
        jackknife standard error at every c. The interval is spanned by all c that are not rejected.

    References:
        Fieller (1954), Some problems in interval estimation.

    Example:
        >>> estimate = pooled_cosine(np.array([[0.9, 1.0, 1.0], [0.7, 1.0, 1.0], [0.8, 1.0, 1.0]]), 0.9)
        >>> round(estimate.value, 3), bool(estimate.low > 0.6), bool(estimate.high < 1.0)
        (0.8, True, True)
    """
    if sums.ndim != 2 or sums.shape[1] != 3:
        raise ShapeError(f"expected sums as cluster × 3, found shape {sums.shape}")
    defined = sums[~np.isnan(sums).any(axis=1)]
    count = len(defined)
    total = defined.sum(axis=0)
    scale = total[1] * total[2]
    value = float(np.clip(total[0] / np.sqrt(scale), -1.0, 1.0)) if scale > 0 and total[1] > 0 else float("nan")
    if count < 2 or not total[2] > 0:
        return _interval(value, np.nan, count, confidence)
    left_out = _distance(total - defined)
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    accepted = _COSINES[np.abs(_distance(total)) <= float(stdtrit(count - 1, 0.5 + confidence / 2)) * error]
    # the estimate itself, or the nearest end where the totals contradict every cosine, lies between the values that are tried
    centre = np.sign(total[0]) if np.isnan(value) else value
    possible = accepted if len(accepted) and np.isnan(value) else np.append(accepted, centre)
    return Estimate(value, float(possible.min()), float(possible.max()), np.nan, count, confidence)


def _distance(totals: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch cosine"]:
    """How far totals are from each cosine."""
    product, ideal, push = totals[..., 0, None], totals[..., 1, None], totals[..., 2, None]
    return product * np.abs(product) - _COSINES * np.abs(_COSINES) * ideal * push


def _interval(value: float, error: float, count: int, confidence: float) -> Estimate:
    half = float(stdtrit(count - 1, 0.5 + confidence / 2)) * error if count >= 2 else np.nan
    return Estimate(value, value - half, value + half, error, count, confidence)
