"""Differences between two experiments on the same questions, on other ones, or on some of both, with intervals that hold together.

A statistic of per-question sums is described by its value and by how much each question moves it. Where two experiments share a question,
what it does to both partly cancels, which is what pairing is for; where they share none, their variances add.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from opdscope.core.aggregation import Estimate, simultaneous_quantile
from opdscope.errors import ShapeError

Statistic = Callable[[Float[np.ndarray, "component"]], float]


@dataclass(frozen=True)
class Difference:
    """Second minus first, before it is decided how wide its interval has to be."""

    value: float
    """The difference; NaN if undefined."""
    influence: Float[np.ndarray, "cluster"]
    """How far each question moves it: the sum of squares is its variance. Zero for a question that takes no part."""
    freedom: float
    """Degrees of freedom of its standard error."""
    num_clusters: int
    """Questions that take part."""

    @property
    def standard_error(self) -> float:
        """Square root of the sum of squared influences; NaN if there are too few questions for one."""
        return float(np.sqrt(np.sum(self.influence**2))) if self.freedom > 0 else float("nan")


def paired_difference(
    first: Float[np.ndarray, "cluster component"], second: Float[np.ndarray, "cluster component"], statistic: Statistic
) -> Difference:
    """The difference on the questions at which both are defined.

    Args:
        first: Sums of each question in the first experiment; rows with a NaN are undefined.
        second: The same questions in the second one.
        statistic: From totals over questions to a number, such as `lambda s: s[0] / s[1]`.

    Raises:
        ShapeError: If the two differ in shape.

    Example:
        >>> mean = lambda s: float(s[0] / s[1])
        >>> first = np.array([[1.0, 1.0], [3.0, 1.0], [9.0, 1.0]])
        >>> change = paired_difference(first, first + np.array([0.5, 0.0]), mean)
        >>> change.value, change.standard_error  # every question changed by the same amount
        (0.5, 0.0)
    """
    if first.shape != second.shape:
        raise ShapeError(f"paired experiments must have the same questions, found shapes {first.shape} and {second.shape}")
    size = first.shape[1]
    value, influence, count = _jackknife(np.concatenate([first, second], axis=1), lambda s: statistic(s[size:]) - statistic(s[:size]))
    return Difference(value, influence, count - 1.0, count)


def unpaired_difference(
    first: Float[np.ndarray, "cluster component"], second: Float[np.ndarray, "cluster component"], statistic: Statistic
) -> Difference:
    """The difference between what each experiment says of the questions that it has.

    Args:
        first: Sums of each question in the first experiment, rows as in `second`; NaN where it has no such question.
        second: The same for the second one. A question that both have moves both, and this is counted.
        statistic: From totals over questions to a number.

    Notes:
        Degrees of freedom are Welch's and Satterthwaite's.

    References:
        Welch (1947), The generalization of Student's problem when several different population variances are involved.

    Example:
        >>> nan = np.nan
        >>> first, second = np.array([[1.0], [3.0], [nan], [nan]]), np.array([[nan], [nan], [4.0], [8.0]])
        >>> found = unpaired_difference(np.c_[first, first * 0 + 1], np.c_[second, second * 0 + 1], lambda s: float(s[0] / s[1]))
        >>> found.value, round(found.standard_error, 3), round(found.freedom, 2)
        (4.0, 2.236, 1.47)
    """
    if first.shape != second.shape:
        raise ShapeError(f"both experiments need a row for every question of either, found shapes {first.shape} and {second.shape}")
    own, other = _jackknife(first, statistic), _jackknife(second, statistic)
    variances = [float(np.sum(part[1] ** 2)) for part in (own, other)]
    parts = sum(variance**2 / (count - 1) for variance, count in zip(variances, (own[2], other[2]), strict=True) if count > 1)
    enough = min(own[2], other[2]) > 1
    freedom = 0.0 if not enough else sum(variances) ** 2 / parts if parts > 0 else own[2] + other[2] - 2.0
    return Difference(other[0] - own[0], other[1] - own[1], freedom, own[2] + other[2])


def simultaneous_differences(differences: Sequence[Difference], confidence: float, generator: np.random.Generator) -> list[Estimate]:
    """The differences with intervals that all hold together; undefined ones take no part and have no interval.

    Args:
        differences: Their influences are about the same questions in the same order.
        confidence: Chance that every interval holds its truth, in (0, 1).
        generator: Source of randomness.
    """
    defined = [d for d in differences if np.isfinite(d.value) and d.freedom > 0]
    width = float("nan")
    if defined:
        freedom = min(d.freedom for d in defined)
        single = float(stdtrit(freedom, 0.5 + confidence / 2))
        columns = np.stack([d.influence for d in defined], axis=-1)
        width = single if len(defined) == 1 else simultaneous_quantile(columns, confidence, generator, freedom=freedom)
    return [_estimate(d, width if np.isfinite(d.value) else float("nan"), confidence) for d in differences]


def _estimate(difference: Difference, width: float, confidence: float) -> Estimate:
    error = difference.standard_error
    half = width * error
    return Estimate(difference.value, difference.value - half, difference.value + half, error, difference.num_clusters, confidence)


def _jackknife(sums: Float[np.ndarray, "cluster component"], statistic: Statistic) -> tuple[float, Float[np.ndarray, "cluster"], int]:
    """Value, influence of each question, and how many questions are defined."""
    defined = ~np.isnan(sums).any(axis=1)
    count, influence = int(defined.sum()), np.zeros(len(sums))
    if count == 0:
        return float("nan"), influence, 0
    total = sums[defined].sum(axis=0)
    if count > 1:
        left_out = np.array([statistic(total - row) for row in sums[defined]])
        influence[defined] = np.sqrt((count - 1) / count) * (left_out.mean() - left_out)
    return statistic(total), influence, count
