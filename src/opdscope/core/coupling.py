r"""Continuations of a node that share random numbers: how far their outcomes go together, and what that does to variances.

Two ways to share, each on its own or both: *common random numbers*, the k-th continuation of every candidate draws with the same numbers, so that
differences between candidates lose the luck that they share; *antithetic pairs*, the second of two continuations of a candidate draws with one
minus the numbers of the first. Means stay what they were, since each continuation alone is still a sample of the student; what changes is how
they vary together. Two correlations, estimated from the outcomes of all nodes, describe it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.controlled import added_squares
from opdscope.core.success import StratumOutcomes

_MOST = 0.95
"""Largest size of an estimated correlation: one would leave a node without any noise."""


@dataclass(frozen=True)
class Coupling:
    """How outcomes go together within a node."""

    pair: float = 0.0
    """Correlation of the two outcomes of an antithetic pair; negative where pairs help."""
    across: float = 0.0
    """Correlation of outcomes of the same index after different candidates (of the means of pairs, where there are pairs)."""

    @property
    def contrast(self) -> float:
        r"""Variance of a difference between candidates, relative to independent continuations: :math:`(1 + \rho_{pair}) (1 - \rho_{across})`."""
        return (1.0 + self.pair) * (1.0 - self.across)

    def correlations(self, counts: Int[np.ndarray, "node stratum"]) -> Float[np.ndarray, "node stratum stratum"]:
        r"""Correlations of the observed successes of a node's strata.

        Args:
            counts: Continuations with a verdict; 0 where a stratum's success owes nothing to continuations of its own.

        Returns:
            One on the diagonal; elsewhere :math:`\rho \min(n_j, n_k) / \sqrt{n_j n_k}`, since so many of the continuations are matched, with
            :math:`\rho \ge -1 / (m - 1)` at a node of m sampled strata: no more can all go against one another.

        Example:
            >>> Coupling(across=0.5).correlations(np.array([[4, 1, 0]])).tolist()
            [[[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]]
        """
        one, other = counts[..., :, None], counts[..., None, :]
        share = np.minimum(one, other) / np.sqrt(np.maximum(one * other, 1))
        sampled = np.sum(counts > 0, axis=-1)[..., None, None]
        across = np.maximum(self.across, -1.0 / np.maximum(sampled - 1, 1))
        return np.where(np.eye(counts.shape[-1], dtype=bool), 1.0, across * share)

    def effective(self, outcomes: StratumOutcomes) -> StratumOutcomes:
        """Outcomes with the counts of independent continuations that would tell as much about differences between candidates.

        Example:
            >>> outcomes = StratumOutcomes(np.array([[3]]), np.array([[4]]), np.array([[np.nan]]))
            >>> Coupling(across=0.5).effective(outcomes).num_verified.tolist()
            [[8.0]]
        """
        return StratumOutcomes(outcomes.num_correct / self.contrast, outcomes.num_verified / self.contrast, outcomes.terminal)


def estimate_coupling(
    outcomes: Sequence[Float[np.ndarray, "stratum continuation"]],
    weights: Sequence[Float[np.ndarray, "stratum"]],
    *,
    pairs: bool,
    across: bool,
    kept: Float[np.ndarray, "node"] | None = None,
) -> Coupling:
    r"""The correlations, from all nodes together.

    Args:
        outcomes: Per node, outcomes in the order of their indices, less their controls if any; NaN where there is none or no verdict.
        weights: Per node, what each stratum weighs in the numbers that are to have intervals, not negative. Candidates that matter go together
            less than others: what they decide is the outcome.
        pairs: Whether continuations 2m and 2m + 1 of a stratum are an antithetic pair.
        across: Whether continuations of one index share their random numbers in all strata of a node.
        kept: Per node, share of an outcome's variance that controls leave; None: there are none.

    Returns:
        Zero where nothing is shared or nothing can be told.

    Notes:
        Of pairs: with s² the variance of a stratum's pair means and w the mean of :math:`(R - R')^2 / 2` within its pairs,
        :math:`1 + \rho = 4 s^2 / (2 s^2 + w)`, sums over strata above and below. Across: sample covariances of matched means over
        :math:`\sqrt{v_j v_k}` with v the variance of one outcome, a success and a failure added (of outcomes without a control
        :math:`\tilde S (1 - \tilde S)`), half of it times :math:`1 + \rho` that of the
        mean of a pair; both summed over pairs of strata with weights :math:`w_j w_k`. Each is multiplied by the positive part of
        :math:`1 - \operatorname{se}^2 / \rho^2`, its standard error by the jackknife over nodes, so that a run of few nodes finds no
        correlation in its noise.

    References:
        James and Stein (1961), Estimation with quadratic loss;
        Owen (2013), Monte Carlo theory, methods and examples, chapter 8 (antithetics, common random numbers).

    Example:
        >>> same = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
        >>> estimate_coupling([same], [np.array([0.5, 0.5])], pairs=True, across=False).pair
        -0.95
        >>> estimate_coupling([same], [np.array([0.5, 0.5])], pairs=False, across=True).across
        0.95
    """
    pair = _pair_correlation(outcomes) if pairs else 0.0
    if not across:
        return Coupling(pair)
    shared, matched = np.zeros((2, len(outcomes)))
    left = np.ones(len(outcomes)) if kept is None else kept
    for i, (own, weight) in enumerate(zip(outcomes, weights, strict=True)):
        units = _pair_means(own) if pairs else own
        deviation = np.sqrt(_smoothed_variance(own, float(left[i])) * ((1.0 + pair) / 2.0 if pairs else 1.0))
        for j in range(len(own)):
            for k in range(j + 1, len(own)):
                both = ~np.isnan(units[j]) & ~np.isnan(units[k])
                if both.sum() > 1:
                    product = weight[j] * weight[k]
                    shared[i] += product * float(np.cov(units[j, both], units[k, both])[0, 1])
                    matched[i] += product * float(deviation[j] * deviation[k])
    return Coupling(pair, _correlation(shared, matched))


def _pair_correlation(outcomes: Sequence[Float[np.ndarray, "stratum continuation"]]) -> float:
    between, within = np.zeros((2, len(outcomes)))
    for i, own in enumerate(outcomes):
        for one, other in zip(*_pairs(own), strict=True):
            whole = ~np.isnan(one) & ~np.isnan(other)
            if whole.sum() > 1:
                between[i] += 2.0 * float(np.var((one[whole] + other[whole]) / 2.0, ddof=1))
                within[i] += float(np.mean((one[whole] - other[whole]) ** 2)) / 2.0
    return _correlation(between - within, between + within)


def _correlation(covariance: Float[np.ndarray, "node"], variance: Float[np.ndarray, "node"]) -> float:
    """Ratio of two sums over nodes, drawn towards zero by as much of it as which nodes were drawn can explain."""
    known = variance > 0
    covariance, variance, count = covariance[known], variance[known], int(known.sum())
    if count == 0:
        return 0.0
    ratio = covariance.sum() / variance.sum()
    kept = 1.0
    if count > 1 and ratio:
        without = (covariance.sum() - covariance) / (variance.sum() - variance)
        kept = max(1.0 - (count - 1) * float(np.var(without)) / ratio**2, 0.0)
    return float(np.clip(kept * ratio, -_MOST, _MOST))


def _pairs(outcomes: Float[np.ndarray, "stratum continuation"]) -> tuple[np.ndarray, np.ndarray]:
    size = outcomes.shape[1] // 2 * 2
    return outcomes[:, 0:size:2], outcomes[:, 1:size:2]


def _pair_means(outcomes: Float[np.ndarray, "stratum continuation"]) -> Float[np.ndarray, "stratum pair"]:
    first, second = _pairs(outcomes)
    return (first + second) / 2.0


def _smoothed_variance(outcomes: Float[np.ndarray, "stratum continuation"], kept: float) -> Float[np.ndarray, "stratum"]:
    """Of one outcome, with a success and a failure added: never zero because a few happened to agree."""
    count = np.sum(~np.isnan(outcomes), axis=1)
    mean = np.nansum(outcomes, axis=1) / np.maximum(count, 1)
    squares = np.nansum((outcomes - mean[:, None]) ** 2, axis=1)
    return (squares + kept * added_squares(count, mean, 1.0)) / (count + 2.0)
