r"""Weights on parts of a teacher's push (bins of tokens, classes of responses, questions), and what they are worth on data they were not fitted to.

The push on each part is another direction, so that with weights w the gain is :math:`\sum_b w_b G_b` and the squared size of the push
:math:`\sum_b w_b^2 K_b`. Gain per size is largest at :math:`w_b \propto G_b / K_b`: weight follows the gain that a unit of *squared* push buys. Both
are means over questions; :math:`K` is the KL divergence, to second order twice the squared size in the Fisher metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.aggregation import Estimate, clustered_mean, clustered_statistic, simultaneous_quantile
from opdscope.core.shrinkage import shrink
from opdscope.errors import ShapeError

MOST_WEIGHT = 4.0
"""Largest weight relative to the average one, before all are scaled to the size of the unweighted push."""


@dataclass(frozen=True)
class PartSums:
    """Gain and squared push of every part on every question; both per response."""

    gains: Float[np.ndarray, "question part"]
    """Natural gains, in success per unit step. NaN where a question has none."""
    pushes: Float[np.ndarray, "question part"]
    """KL divergence in nats, not negative."""

    def __post_init__(self) -> None:
        if self.gains.shape != self.pushes.shape or self.gains.ndim != 2:
            raise ShapeError(f"expected gains and pushes as question × part, found shapes {self.gains.shape} and {self.pushes.shape}")

    def at(self, questions: Int[np.ndarray, "some"]) -> "PartSums":
        """Those of some questions."""
        return PartSums(self.gains[questions], self.pushes[questions])


def fit_weights(sums: PartSums, confidence: float) -> Float[np.ndarray, "part"]:
    r"""Weights of the parts: 1 wherever a part's gain per squared push is not told apart from the average one.

    Args:
        sums: What the weights are fitted to.
        confidence: Level at which a part must differ, all parts together.

    Returns:
        Weights ≥ 0, scaled to :math:`\sum_b w_b^2 K_b = \sum_b K_b`, so that they do not change the size of the push. All 1 if no part differs, or if
        the whole push has no gain to be shared out.

    Notes:
        :math:`r_b = G_b / K_b` against :math:`r = \sum G / \sum K`, by the difference :math:`G_b - r K_b`, whose error is clustered by
        question. Where its interval, simultaneous over parts, excludes zero, the weight is :math:`\tilde r_b / r` cut to [0, 4] with
        :math:`\tilde r_b` drawn towards r as far as the differences between parts are noise (:func:`opdscope.core.shrinkage.shrink`).
    """
    defined = ~np.isnan(sums.gains).any(axis=1)
    gains, pushes = sums.gains[defined], sums.pushes[defined]
    ones = np.ones(sums.gains.shape[1])
    total_gain, total_push = gains.sum(axis=0), pushes.sum(axis=0)
    if len(gains) < 2 or total_gain.sum() <= 0 or (total_push <= 0).all():
        return ones
    rate = total_gain.sum() / total_push.sum()
    used = total_push > 0
    # the whole rate is an estimate, too: its error goes into each difference
    shares = total_push[used] / total_push.sum()
    whole = gains.sum(axis=1) - rate * pushes.sum(axis=1)
    contrasts = gains[:, used] - rate * pushes[:, used] - whole[:, None] * shares
    width = simultaneous_quantile(contrasts, confidence, np.random.default_rng(0))
    estimates = [clustered_mean(column, confidence) for column in contrasts.T]
    errors = np.array([estimate.standard_error for estimate in estimates])
    differs = np.array([abs(estimate.value) > width * estimate.standard_error for estimate in estimates], dtype=bool)
    size = total_push[used] / len(gains)
    shrunk = shrink(np.array([estimate.value for estimate in estimates]) / size, errors / size, centre=0.0)
    ratio = np.clip(1.0 + shrunk.mean / rate, 0.0, MOST_WEIGHT)
    weights = ones.copy()
    weights[used] = np.where(differs, ratio, 1.0)
    return scale_to_push(weights, total_push)


def scale_to_push(weights: Float[np.ndarray, "part"], pushes: Float[np.ndarray, "part"]) -> Float[np.ndarray, "part"]:
    """The weights, scaled so that the squared push stays as large as without them."""
    squared = float(np.sum(weights**2 * pushes))
    return weights * np.sqrt(np.sum(pushes) / squared) if squared > 0 else weights


def gain_per_push(sums: Float[np.ndarray, "2"]) -> float:
    """Total gain over the root of total squared push; NaN without a push."""
    return float(sums[0] / np.sqrt(sums[1])) if sums[1] > 0 else float("nan")


@dataclass(frozen=True)
class HeldOut:
    """Per question, what a weighting does on data that it was not fitted to; components: gain and squared push with weights, then without."""

    sums: Float[np.ndarray, "question 4"]
    """NaN where undefined."""


def cross_fit(sums: PartSums, fold: Int[np.ndarray, "question"], confidence: float) -> HeldOut:
    """Each question weighted by what the questions of the other folds say.

    Args:
        sums: All questions.
        fold: Which fold each belongs to.
        confidence: For :func:`fit_weights`.
    """
    found = np.full((len(fold), 4), np.nan)
    for own in np.unique(fold).tolist():
        weights = fit_weights(sums.at(np.flatnonzero(fold != own)), confidence)
        members = np.flatnonzero(fold == own)
        found[members] = weigh(sums.at(members), weights)
    return HeldOut(found)


def weigh(sums: PartSums, weights: Float[np.ndarray, "*question part"]) -> Float[np.ndarray, "question 4"]:
    """Gain and squared push of each question with the weights, then without them."""
    columns = [weights * sums.gains, weights**2 * sums.pushes, sums.gains, sums.pushes]
    return np.stack([np.sum(column, axis=1) for column in columns], axis=-1)


def improvements(candidates: Sequence[HeldOut], confidence: float, generator: np.random.Generator) -> list[Estimate]:
    r"""By how much each candidate raises the gain per size of the push on data that it was not fitted to; all intervals hold together.

    Args:
        candidates: Over the same questions.
        confidence: Chance that every interval holds its truth.
        generator: Source of randomness.

    Returns:
        :math:`\sum w G / \sqrt{\sum w^2 K} - \sum G / \sqrt{\sum K}` with means over questions for sums. Where nothing is to be gained, a
        lower end is above zero with a chance of at most about (1 - confidence) / 2, however many candidates there are.
    """
    counted = [np.column_stack([candidate.sums, np.where(np.isnan(candidate.sums).any(axis=1), np.nan, 1.0)]) for candidate in candidates]
    values = np.stack([_pseudo_values(sums, _improvement) for sums in counted], axis=-1)
    width = simultaneous_quantile(values, confidence, generator)
    return [clustered_statistic(sums, _improvement, confidence, width) for sums in counted]


def _improvement(sums: Float[np.ndarray, "5"]) -> float:
    means = sums[:4] / sums[4]
    return gain_per_push(means[:2]) - gain_per_push(means[2:])


def _pseudo_values(
    sums: Float[np.ndarray, "question component"], statistic: Callable[[Float[np.ndarray, "component"]], float]
) -> Float[np.ndarray, "question"]:
    """Jackknife pseudo-values, whose spread is the statistic's and which go together as statistics do; NaN where a question has no sums."""
    found = np.full(len(sums), np.nan)
    defined = np.flatnonzero(~np.isnan(sums).any(axis=1))
    total = sums[defined].sum(axis=0)
    for i in defined:
        found[i] = len(defined) * statistic(total) - (len(defined) - 1) * statistic(total - sums[i])
    return found
