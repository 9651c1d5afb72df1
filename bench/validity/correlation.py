"""How well a number foretells a realised change: rank correlation with clustered intervals, and agreement of signs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.9


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman correlation with its bootstrap interval."""

    value: float
    low: float
    high: float
    num_pairs: int
    num_clusters: int


def spearman(x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"]) -> float:
    """Rank correlation, ties at their mean rank; NaN where either does not vary.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])), 2)
        0.8
    """
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def clustered_spearman(
    x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"], clusters: Sequence[str], seed: int = 0, num_resamples: int = 1000
) -> RankCorrelation:
    """Spearman correlation with a percentile interval from drawing whole clusters anew, with replacement.

    Args:
        x: Predictions; pairs with a NaN are left out.
        y: Realised changes.
        clusters: What each pair belongs to: configurations that share a student and a teacher share errors.
        seed: Of the resampling.
        num_resamples: Bootstrap samples.
    """
    defined = ~(np.isnan(x) | np.isnan(y))
    x, y = x[defined], y[defined]
    labels = np.array(clusters)[defined]
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(num_resamples):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values.append(spearman(x[drawn], y[drawn]))
    low, high = np.nanquantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]) if members else (np.nan, np.nan)
    return RankCorrelation(spearman(x, y), float(low), float(high), len(x), len(members))


def paired_advantage(
    x: Float[np.ndarray, "pair"],
    rival: Float[np.ndarray, "pair"],
    y: Float[np.ndarray, "pair"],
    clusters: Sequence[str],
    seed: int = 0,
    num_resamples: int = 1000,
) -> float:
    """Share of cluster resamples in which `x` has the larger rank correlation with `y`; a rival counts by its size, whatever its sign."""
    labels = np.array(clusters)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    won = []
    for _ in range(num_resamples):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        won.append(abs(spearman(x[drawn], y[drawn])) > abs(spearman(rival[drawn], y[drawn])))
    return float(np.mean(won))


@dataclass(frozen=True)
class SignAgreement:
    """How often prediction and outcome have one sign."""

    agreeing: int
    total: int
    agreeing_settled: int
    """Among pairs whose realised change is further from zero than its 95 % error."""
    settled: int


def sign_agreement(x: Float[np.ndarray, "pair"], y: Float[np.ndarray, "pair"], error: Float[np.ndarray, "pair"]) -> SignAgreement:
    """Counts over all pairs, and over those whose realised change is settled: at least 1.96 standard errors from zero.

    Example:
        >>> sign_agreement(np.array([1.0, -1.0, 1.0]), np.array([0.5, -0.5, -0.01]), np.full(3, 0.1))
        SignAgreement(agreeing=2, total=3, agreeing_settled=2, settled=2)
    """
    agrees = np.sign(x) == np.sign(y)
    settled = np.abs(y) >= 1.96 * error
    return SignAgreement(int(agrees.sum()), len(x), int((agrees & settled).sum()), int(settled.sum()))


@dataclass(frozen=True)
class SeedMean:
    """Mean over training seeds, with an error that knows few seeds."""

    value: float
    error: float
    num_seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Student-t at 95 %; NaN with one seed."""
        half = float(stats.t.ppf(0.975, self.num_seeds - 1)) * self.error if self.num_seeds > 1 else float("nan")
        return self.value - half, self.value + half


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Mean and standard error over seeds; at least one.

    Example:
        >>> seed_mean([0.1, 0.3]).value
        0.2
    """
    array = np.array(values)
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")
    return SeedMean(float(array.mean()), error, len(array))
