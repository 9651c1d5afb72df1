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


def clustered_mean(values: Float[np.ndarray, "cluster"], confidence: float, width: float | None = None) -> Estimate:
    r"""Mean over questions, each with equal weight, and a Student-t interval that skewness may widen.

    Args:
        values: One number per question; NaN is undefined and not counted.
        confidence: Level of the interval, in (0, 1).
        width: Half-width in standard errors, from :func:`simultaneous_quantile`, of an interval that has to hold together with others;
            by default the quantile of Student's t.

    Returns:
        The estimate; its interval is NaN with fewer than two questions.

    Notes:
        :func:`interval_reach` says what skewness adds.

    Example:
        >>> estimate = clustered_mean(np.array([0.0, 1.0, np.nan]), 0.9)
        >>> estimate.value, estimate.num_clusters
        (0.5, 2)
    """
    defined = values[~np.isnan(values)]
    count = len(defined)
    if count < 2:
        return Estimate(float(np.mean(defined)) if count else np.nan, np.nan, np.nan, np.nan, count, confidence)
    return _interval(float(np.mean(defined)), float(np.std(defined, ddof=1) / np.sqrt(count)), defined, confidence, width)


def interval_reach(
    values: Float[np.ndarray, "cluster *batch"], width: float
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    r"""How far below and above a mean its interval reaches, in standard errors.

    Args:
        values: What the mean is of; a constant added, or a positive factor, changes nothing.
        width: Half-width that the interval would have if the values were not skewed.

    Returns:
        Two numbers, neither smaller than `width`; equal to it where the values are no more skewed than those of a normal distribution are by
        chance.

    Notes:
        The t statistic of n values with skewness :math:`\gamma` is itself skewed the other way. Hall's monotone cubic
        :math:`g(T) = T + a T^2 + a^2 T^3 / 3 + b` with :math:`a = \gamma / (3 \sqrt n)`, :math:`b = \gamma / (6 \sqrt n)` takes that out, so that
        the interval ends at :math:`g^{-1}(\pm` width). The skewness is an estimate: its square is lowered by what it is for normal values,
        :math:`6 (n - 2) / ((n + 1)(n + 3))`, and it may move an end out but not in. Ends that move in as well keep the width and so the
        coverage, 85 to 88 % of 90 for the totals of 48 questions that a few nodes dominate; ends that only move out cover 89 to 91 %.

    References:
        Hall (1992), On the removal of skewness by transformation; Johnson (1978), Modified t tests.

    Example:
        >>> down, up = interval_reach(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 4.0]), 2.0)
        >>> float(down), bool(up > 3.0)
        (2.0, True)
    """
    count = len(values)
    centred = values - np.mean(values, axis=0)
    squared = centred**2
    spread = np.mean(squared, axis=0)
    skewness = np.mean(squared * centred, axis=0) / np.where(spread > 0, spread, 1.0) ** 1.5
    by_chance = 6.0 * (count - 2) / ((count + 1) * (count + 3))
    known = np.sign(skewness) * np.sqrt(np.maximum(skewness**2 - by_chance, 0.0))
    slope, shift = known / (3.0 * np.sqrt(count)), known / (6.0 * np.sqrt(count))
    divisor = np.where(slope != 0, slope, 1.0)
    low, high = (np.where(slope != 0, (np.cbrt(1.0 + 3.0 * slope * (end - shift)) - 1.0) / divisor, end) for end in (-width, width))
    return np.maximum(width, high), np.maximum(width, -low)


def clustered_statistic(
    sums: Float[np.ndarray, "cluster component"],
    statistic: Callable[[Float[np.ndarray, "component"]], float],
    confidence: float,
    width: float | None = None,
) -> Estimate:
    r"""A function of totals over questions, such as a ratio, with a jackknife interval that leaves out one question at a time.

    Args:
        sums: Weighted sums of each question; rows with a NaN are undefined and not counted.
        statistic: From the totals to the number, for example `lambda s: s[0] / s[1]`; may return NaN.
        confidence: Level of the interval, in (0, 1).
        width: As for :func:`clustered_mean`.

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
    total = defined.sum(axis=0)
    value = statistic(total) if count else np.nan
    if count < 2:
        return Estimate(value, np.nan, np.nan, np.nan, count, confidence)
    left_out = np.array([statistic(total - row) for row in defined])
    error = float(np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)))
    # a question counts by what the number loses without it
    return _interval(value, error, -left_out, confidence, width)


def bounded_estimate(value: Estimate, lowest: Estimate, highest: Estimate) -> Estimate:
    """An average of numbers that noise biases all the same way, with an interval that holds it wherever their own intervals leave them.

    Args:
        value: The average.
        lowest: The average of the lower ends of the numbers' own intervals.
        highest: That of the upper ends.

    Returns:
        The average with the interval from the lower end of the one to the upper end of the other. It is a bound: it holds the truth at least as
        often as it says, and usually more often. It has no standard error (NaN), since errors that go together shrink with no number of
        questions.

    Example:
        >>> low, middle, high = (clustered_mean(np.array([0.1, 0.1]) + shift, 0.9) for shift in (-0.2, 0.0, 0.3))
        >>> estimate = bounded_estimate(middle, low, high)
        >>> round(estimate.low, 3), round(estimate.value, 3), round(estimate.high, 3)
        (-0.1, 0.1, 0.4)
    """
    return replace(value, low=lowest.low, high=highest.high, standard_error=float("nan"))


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
        [-1, 1] is tested instead: :math:`N - c \sqrt{D_1 D_2}` has mean near zero if c is the truth, and its error follows from how
        :math:`dN - c\, d\sqrt{D_1 D_2}` differs between questions. A norm below its own standard error counts as that much: it is positive, and
        no more is known of it. The interval is spanned by all c that are not rejected, on the side of zero where N is if zero is rejected.

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
    product, ideal, push = defined.sum(axis=0)
    value = float(np.clip(product / np.sqrt(ideal * push), -1.0, 1.0)) if ideal > 0 and push > 0 else np.nan
    if count < 2 or not push > 0:
        return Estimate(value, np.nan, np.nan, np.nan, count, confidence)
    accepted = _possible_cosines(defined, float(stdtrit(count - 1, 0.5 + confidence / 2)))
    # the estimate itself, or the nearest end where the totals contradict every cosine, lies between the values that are tried
    centre = np.sign(product) if np.isnan(value) else value
    possible = accepted if len(accepted) and np.isnan(value) else np.append(accepted, centre)
    return Estimate(value, float(possible.min()), float(possible.max()), np.nan, count, confidence)


def _possible_cosines(sums: Float[np.ndarray, "cluster 3"], width: float) -> Float[np.ndarray, "cosine"]:
    """Cosines that the questions' sums do not reject."""
    count = len(sums)
    product, ideal, push = sums.sum(axis=0)
    centred = (sums - sums.mean(axis=0)) * np.sqrt(count / (count - 1))
    norm = max(float(ideal), float(np.sqrt(np.sum(centred[:, 1] ** 2))))
    if not norm > 0:
        return _COSINES
    length = np.sqrt(norm * push)
    of_length = 0.5 * (centred[:, 1] * np.sqrt(push / norm) + centred[:, 2] * np.sqrt(norm / push))
    residuals = centred[:, :1] - _COSINES * of_length[:, None]
    distance, error = product - _COSINES * length, np.sqrt(np.sum(residuals**2, axis=0))
    down, up = interval_reach(residuals, width)
    accepted = (distance - down * error <= 0) & (distance + up * error >= 0)
    if not accepted[len(_COSINES) // 2]:
        accepted &= _COSINES * product > 0
    return _COSINES[accepted]


def _interval(value: float, error: float, values: Float[np.ndarray, "cluster"], confidence: float, width: float | None = None) -> Estimate:
    """The interval of an estimate to which each question contributes its value, up to a factor."""
    count = len(values)
    down, up = interval_reach(values, float(stdtrit(count - 1, 0.5 + confidence / 2)) if width is None else width)
    return Estimate(value, value - float(down) * error, value + float(up) * error, error, count, confidence)
