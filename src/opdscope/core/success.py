"""From the outcomes of continuations to the success of each stratum: plug-in means, their noise, and posterior draws."""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaln

from opdscope.errors import ShapeError

_STRENGTHS = np.geomspace(0.3, 300.0, 41)
"""Grid of prior strengths: from a prior worth a third of a continuation to one that pools a node's strata almost completely."""

_VALUES = (np.arange(50) + 0.5) / 50
"""Grid over the unknown value of a node."""


@dataclass(frozen=True)
class StratumOutcomes:
    """Outcomes of the continuations of one node or of many (leading axes), per stratum."""

    num_correct: Int[np.ndarray, "*batch stratum"]
    """Continuations that ended CORRECT."""
    num_verified: Int[np.ndarray, "*batch stratum"]
    """Continuations with a verdict: CORRECT, INCORRECT or TRUNCATED. UNVERIFIABLE ones are not counted here."""
    terminal: Float[np.ndarray, "*batch stratum"]
    """Success of a stratum whose token ends the response, 0 or 1, known without noise; NaN for all others."""

    def __post_init__(self) -> None:
        if not self.num_correct.shape == self.num_verified.shape == self.terminal.shape:
            raise ShapeError(f"outcome arrays differ in shape: {self.num_correct.shape}, {self.num_verified.shape}, {self.terminal.shape}")


def mean_success(student_probs: Float[np.ndarray, "*batch stratum"], outcomes: StratumOutcomes) -> Float[np.ndarray, "*batch stratum"]:
    r"""Observed success of each stratum, unbiased wherever it was sampled.

    Args:
        student_probs: Student probability of each stratum, summing to one.
        outcomes: What was observed.

    Returns:
        Shares in [0, 1]. A stratum without any verdict takes the value of the sampled ones, which gives it no advantage of its own; its
        mass is reported as mass outside the measurement. NaN if no stratum of the node was sampled.

    Example:
        >>> outcomes = StratumOutcomes(np.array([3, 0]), np.array([4, 0]), np.array([np.nan, np.nan]))
        >>> mean_success(np.array([0.9, 0.1]), outcomes).tolist()
        [0.75, 0.75]
    """
    return fill_unsampled(student_probs, observed_success(outcomes))


def observed_success(outcomes: StratumOutcomes) -> Float[np.ndarray, "*batch stratum"]:
    """Observed success of each stratum, NaN where there was no verdict; known success where the token ends the response.

    Example:
        >>> observed_success(StratumOutcomes(np.array([3, 0, 0]), np.array([4, 0, 0]), np.array([np.nan, np.nan, 1.0]))).tolist()
        [0.75, nan, 1.0]
    """
    return np.where(np.isnan(outcomes.terminal), _share(outcomes.num_correct, outcomes.num_verified), outcomes.terminal)


def fill_unsampled(
    student_probs: Float[np.ndarray, "*batch stratum"], success: Float[np.ndarray, "*batch stratum"]
) -> Float[np.ndarray, "*batch stratum"]:
    """Success with the value of the node's other strata in place of NaN, and so without an advantage; NaN if all strata of a node are.

    Example:
        >>> fill_unsampled(np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.9, np.nan])).round(4).tolist()
        [0.5, 0.9, 0.65]
    """
    sampled = ~np.isnan(success)
    mass = np.sum(np.where(sampled, student_probs, 0.0), axis=-1, keepdims=True)
    total = np.sum(np.where(sampled, student_probs * np.where(sampled, success, 0.0), 0.0), axis=-1, keepdims=True)
    value = np.where(mass > 0, total / np.where(mass > 0, mass, 1.0), np.nan)
    return np.where(sampled, success, value)


def success_noise(outcomes: StratumOutcomes) -> Float[np.ndarray, "*batch stratum"]:
    r"""Unbiased variance of each stratum's observed success: :math:`\hat S (1 - \hat S) / (n - 1)`.

    Returns:
        Variances. Zero where success is known exactly or was not sampled; the worst case 1/4 where a single continuation tells nothing of
        its own spread.

    Example:
        >>> success_noise(StratumOutcomes(np.array([2]), np.array([4]), np.array([np.nan]))).round(4).tolist()
        [0.0833]
    """
    count = outcomes.num_verified
    share = np.nan_to_num(_share(outcomes.num_correct, count))
    variance = np.where(count >= 2, share * (1.0 - share) / np.maximum(count - 1, 1), np.where(count == 1, 0.25, 0.0))
    return np.where(np.isnan(outcomes.terminal), variance, 0.0)


def prior_strength(prior_mean: Float[np.ndarray, "node"], outcomes: StratumOutcomes) -> float:
    r"""How far strata of one node agree, over all nodes: the empirical-Bayes strength of their common prior.

    Args:
        prior_mean: Value of each node as far as it is known, in (0, 1); only the distribution of these values over all nodes is used.
        outcomes: Outcomes, `node × stratum`.

    Returns:
        The strength κ, in continuations, of :math:`\operatorname{Beta}(\kappa m, \kappa (1 - m))`, between 0.3 and 300; 2 if nothing was
        sampled.

    Notes:
        Beta-binomial likelihood, in which the value m of a node is integrated out over the distribution of `prior_mean`. Putting the
        estimate itself in place of m would use the outcomes twice: strata lie closer to their own mean than to the true value, κ comes out
        up to three times too large, and intervals of gains, 90 % by name, cover 70 %. κ is the posterior mean of the prior's variance,
        :math:`1 / (\kappa + 1)`, on a grid that is even in log κ: where the outcomes cannot tell large strengths apart it stays below them.

    References:
        Casella (1985), An introduction to empirical Bayes data analysis.
    """
    evidence = _Evidence.of(prior_mean, outcomes)
    if not evidence.pairs[1].any():
        return 2.0
    likelihood = np.array([float(np.sum(np.logaddexp.reduce(evidence.joint(strength), axis=0))) for strength in _STRENGTHS])
    posterior = np.exp(likelihood - likelihood.max())
    return float(np.sum(posterior) / np.sum(posterior / (_STRENGTHS + 1.0)) - 1.0)


def prior_mean_draws(
    prior_mean: Float[np.ndarray, "node"],
    outcomes: StratumOutcomes,
    strength: float,
    num_draws: int,
    generators: Sequence[np.random.Generator],
) -> Float[np.ndarray, "draw node"]:
    r"""Draws of the centre of each node's prior, for questions in which the node's level counts and not only how its strata differ.

    Args:
        prior_mean: Value of each node as far as it is known, in (0, 1); only the distribution of these values over all nodes is used.
        outcomes: Outcomes, `node × stratum`.
        strength: Prior strength κ in continuations, from :func:`prior_strength`.
        num_draws: How many draws.
        generators: Source of randomness of each node.

    Returns:
        Centres in (0, 1).

    Notes:
        :math:`p(m \mid \text{outcomes}) \propto p(m) \prod_j \operatorname{BetaBinomial}(c_j; n_j, \kappa m, \kappa (1 - m))`, the same joint
        that :func:`prior_strength` sums over m. With the centre held at its estimate, strata that borrow from one another much (large κ)
        would leave the node's value hardly any uncertainty, however few continuations it rests on.

    Example:
        >>> sources = [np.random.default_rng(0)]
        >>> outcomes = StratumOutcomes(np.array([[30, 28]]), np.array([[40, 40]]), np.full((1, 2), np.nan))
        >>> draws = prior_mean_draws(np.array([0.72]), outcomes, 20.0, 400, sources)
        >>> draws.shape, bool(0.6 < draws.mean() < 0.8)
        ((400, 1), True)
    """
    joint = _Evidence.of(prior_mean, outcomes).joint(strength)
    chances = np.cumsum(np.exp(joint - np.logaddexp.reduce(joint, axis=0)), axis=0)
    draws = np.empty((num_draws, len(prior_mean)))
    for node, generator in enumerate(generators):
        cell = np.searchsorted(chances[:-1, node], generator.random(num_draws), side="right")
        draws[:, node] = (cell + generator.uniform(0.01, 0.99, size=num_draws)) / len(_VALUES)  # anywhere in the cell, never 0 or 1
    return draws


@dataclass(frozen=True)
class _Evidence:
    """What outcomes say about the values of nodes, in a form from which any prior strength is tried quickly."""

    pairs: Int[np.ndarray, "2 pair"]
    """Every different pair of correct and verified continuations."""
    index: Int[np.ndarray, "node stratum"]
    """Which pair each stratum has; one without information has (0, 0)."""
    weights: Float[np.ndarray, "value"]
    """Log weight of each value of the grid."""

    @classmethod
    def of(cls, prior_mean: Float[np.ndarray, "node"], outcomes: StratumOutcomes) -> "_Evidence":
        use = np.isnan(outcomes.terminal)
        correct, count = np.where(use, outcomes.num_correct, 0), np.where(use, outcomes.num_verified, 0)
        pairs, inverse = np.unique(np.stack([correct.ravel(), count.ravel()]), axis=1, return_inverse=True)
        # one more in every cell: a node's value may lie where no estimate does
        weights = np.log(1 + np.histogram(prior_mean, bins=len(_VALUES), range=(0.0, 1.0))[0])
        return cls(pairs, inverse.reshape(use.shape), weights)

    def joint(self, strength: float) -> Float[np.ndarray, "value node"]:
        """Log of prior times likelihood of each value of each node, up to a constant."""
        alpha, beta = strength * _VALUES[:, None], strength * (1.0 - _VALUES[:, None])
        table = betaln(alpha + self.pairs[0], beta + self.pairs[1] - self.pairs[0]) - betaln(alpha, beta)
        return np.sum(table[:, self.index], axis=-1) + self.weights[:, None]


def prior_mean(student_probs: Float[np.ndarray, "*batch stratum"], outcomes: StratumOutcomes) -> Float[np.ndarray, "*batch"]:
    """Centre of a node's prior: its value with half a success and half a failure added to each sampled stratum, so that it stays in (0, 1).

    Example:
        >>> prior_mean(np.array([0.5, 0.5]), StratumOutcomes(np.array([4, 0]), np.array([4, 4]), np.array([np.nan, np.nan]))).tolist()
        0.5
    """
    smoothed = (outcomes.num_correct + 0.5) / (outcomes.num_verified + 1.0)
    weight = np.where((outcomes.num_verified > 0) & np.isnan(outcomes.terminal), student_probs, 0.0)
    total = np.sum(weight, axis=-1)
    return np.where(total > 0, np.sum(weight * smoothed, axis=-1) / np.where(total > 0, total, 1.0), 0.5)


def posterior_success(
    outcomes: StratumOutcomes, mean: Float[np.ndarray, "*batch"], strength: float, num_draws: int, generator: np.random.Generator
) -> Float[np.ndarray, "draw *batch stratum"]:
    r"""Draws of every stratum's success given its outcomes, from which any quantity gets its interval.

    Args:
        outcomes: What was observed.
        mean: Centre of each node's prior, in (0, 1).
        strength: Prior strength κ in continuations, from :func:`prior_strength`.
        num_draws: How many draws.
        generator: Source of randomness.

    Returns:
        Independent draws from :math:`\operatorname{Beta}(\kappa m + c, \kappa (1 - m) + n - c)`. A stratum that was not sampled keeps the
        prior's full uncertainty; a terminal one is exact.
    """
    centre = mean[..., None]
    alpha = strength * centre + outcomes.num_correct
    beta = strength * (1.0 - centre) + outcomes.num_verified - outcomes.num_correct
    draws = generator.beta(alpha, beta, size=(num_draws, *alpha.shape))
    return np.where(np.isnan(outcomes.terminal), draws, outcomes.terminal)


def _share(part: Int[np.ndarray, "*batch"], whole: Int[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
