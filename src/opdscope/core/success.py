"""From the outcomes of continuations to the success of each stratum: plug-in means, their noise, and posterior draws."""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaln

from opdscope.errors import ShapeError

_STRENGTHS = np.geomspace(0.3, 300.0, 13)
"""Grid of prior strengths: from a prior worth a third of a continuation to one that pools a node's strata almost completely."""

_VALUES = (np.arange(25) + 0.5) / 25
"""Grid over the unknown value of a node."""

_STEPS = 100
"""Of expectation maximisation; more change no interval by a hundredth."""


@dataclass(frozen=True)
class StratumOutcomes:
    """Outcomes of the continuations of one node or of many (leading axes), per stratum."""

    num_correct: Int[np.ndarray, "*batch stratum"] | Float[np.ndarray, "*batch stratum"]
    """Continuations that ended CORRECT; no whole number where it stands for as many independent ones (:mod:`opdscope.core.coupling`)."""
    num_verified: Int[np.ndarray, "*batch stratum"] | Float[np.ndarray, "*batch stratum"]
    """Continuations with a verdict: CORRECT, INCORRECT or TRUNCATED. UNVERIFIABLE ones are not counted here."""
    terminal: Float[np.ndarray, "*batch stratum"]
    """Success of a stratum whose token ends the response, 0 or 1, known without noise; NaN for all others."""

    def __post_init__(self) -> None:
        if not self.num_correct.shape == self.num_verified.shape == self.terminal.shape:
            raise ShapeError(f"outcome arrays differ in shape: {self.num_correct.shape}, {self.num_verified.shape}, {self.terminal.shape}")

    def at(self, index: Int[np.ndarray, "..."] | int) -> "StratumOutcomes":
        """Those of some nodes."""
        return StratumOutcomes(self.num_correct[index], self.num_verified[index], self.terminal[index])


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


@dataclass(frozen=True)
class SuccessPrior:
    """How success differs between the nodes of a run, and between the strata of a node."""

    strengths: Float[np.ndarray, "strength"]
    """Share of nodes at each strength κ of the grid; the last entry is that of nodes whose strata do not differ at all (κ infinite)."""
    values: Float[np.ndarray, "value"]
    """Share of nodes at each value of the grid."""


@dataclass(frozen=True)
class PriorDraws:
    r"""Draws of each node's own prior, :math:`\operatorname{Beta}(\kappa m, \kappa (1 - m))`, given that its strata differ."""

    mean: Float[np.ndarray, "draw node"]
    """Centre m, in (0, 1)."""
    strength: Float[np.ndarray, "draw node"]
    """Strength κ, in continuations."""
    differs: Float[np.ndarray, "node"]
    """Chance that the strata of the node differ at all; 1 where the success of a stratum is known without sampling."""


def success_prior(outcomes: StratumOutcomes) -> SuccessPrior:
    r"""The empirical-Bayes prior of success over nodes that are alike: a mixture over how far strata of one node agree.

    Args:
        outcomes: Outcomes, `node × stratum`.

    Returns:
        Shares that sum to one; even ones if nothing was sampled.

    Notes:
        Beta-binomial likelihood on a grid of strengths and values, whose shares are found by expectation maximisation with one node more in
        every cell. A single strength for all nodes shrinks those with a large range of success too much and those without one too little:
        intervals of cosines, 90 % by name, covered 77 % of random directions in a world where most nodes have no range.

    References:
        Laird (1978), Nonparametric maximum likelihood estimation of a mixing distribution.
    """
    likelihood = _likelihood(outcomes)
    strengths, values = np.full(len(_STRENGTHS) + 1, 1.0 / (len(_STRENGTHS) + 1)), np.full(len(_VALUES), 1.0 / len(_VALUES))
    for _ in range(_STEPS):
        joint = strengths[:, None] * values
        expected = joint * np.einsum("svn,n->sv", likelihood, 1.0 / np.einsum("sv,svn->n", joint, likelihood))
        strengths, values = (1.0 + expected.sum(axis=axis) for axis in (1, 0))
        strengths, values = strengths / strengths.sum(), values / values.sum()
    return SuccessPrior(strengths, values)


def draw_priors(prior: SuccessPrior, outcomes: StratumOutcomes, num_draws: int, generators: Sequence[np.random.Generator]) -> PriorDraws:
    r"""Draws of the prior of each node given its outcomes.

    Args:
        prior: That of the nodes together.
        outcomes: Outcomes, `node × stratum`; without any, draws are from the prior itself.
        num_draws: How many draws.
        generators: Source of randomness of each node.

    Notes:
        :math:`p(m, \kappa \mid \text{outcomes}) \propto p(m) p(\kappa) \prod_j \operatorname{BetaBinomial}(c_j; n_j, \kappa m, \kappa (1 - m))`.
        With the centre held at its estimate, strata that borrow from one another much (large κ) would leave the node's value hardly any
        uncertainty, however few continuations it rests on.

    Example:
        >>> outcomes = StratumOutcomes(np.array([[30, 28]]), np.array([[40, 40]]), np.full((1, 2), np.nan))
        >>> drawn = draw_priors(success_prior(outcomes), outcomes, 400, [np.random.default_rng(0)])
        >>> drawn.mean.shape, bool(0.5 < drawn.mean.mean() < 0.8)
        ((400, 1), True)
    """
    posterior = prior.strengths[:, None, None] * prior.values[:, None] * _likelihood(outcomes)
    total = posterior.sum(axis=(0, 1))
    cells = posterior[:-1].reshape(-1, outcomes.num_correct.shape[0])
    chances = np.cumsum(cells / cells.sum(axis=0), axis=0)
    mean, strength = np.empty((2, num_draws, len(generators)))
    for node, generator in enumerate(generators):
        cell = np.searchsorted(chances[:-1, node], generator.random(num_draws), side="right")
        within = generator.uniform(0.01, 0.99, size=num_draws)  # anywhere in the cell, never 0 or 1
        mean[:, node], strength[:, node] = (cell % len(_VALUES) + within) / len(_VALUES), _STRENGTHS[cell // len(_VALUES)]
    known = ~np.isnan(outcomes.terminal).all(axis=-1)
    return PriorDraws(mean, strength, np.where(known, 1.0, cells.sum(axis=0) / total))


def _likelihood(outcomes: StratumOutcomes) -> Float[np.ndarray, "strength value node"]:
    """Likelihood of each node's outcomes at every strength and value, its largest one being 1; the last strength is infinite."""
    use = np.isnan(outcomes.terminal)
    correct, count = np.where(use, outcomes.num_correct, 0), np.where(use, outcomes.num_verified, 0)
    # every different pair of counts once; a stratum without information has (0, 0)
    (right, total), index = np.unique(np.stack([correct.ravel(), count.ravel()]), axis=1, return_inverse=True)
    index = index.reshape(use.shape)
    alpha, beta = _STRENGTHS[:, None, None] * _VALUES[:, None], _STRENGTHS[:, None, None] * (1.0 - _VALUES[:, None])
    differing = betaln(alpha + right, beta + total - right) - betaln(alpha, beta)
    same = right * np.log(_VALUES[:, None]) + (total - right) * np.log1p(-_VALUES[:, None])
    # strengths in turn: strength × value × node × stratum in one piece would be large
    logs = np.stack([np.sum(table[:, index], axis=-1) for table in (*differing, same)])
    return np.exp(logs - logs.max(axis=(0, 1)))


def posterior_success(
    outcomes: StratumOutcomes,
    mean: Float[np.ndarray, "*batch"],
    strength: Float[np.ndarray, "#*batch"],
    num_draws: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, "draw *batch stratum"]:
    r"""Draws of every stratum's success given its outcomes, from which any quantity gets its interval.

    Args:
        outcomes: What was observed.
        mean: Centre of each node's prior, in (0, 1).
        strength: Prior strength κ of each node, in continuations.
        num_draws: How many draws.
        generator: Source of randomness.

    Returns:
        Independent draws from :math:`\operatorname{Beta}(\kappa m + c, \kappa (1 - m) + n - c)`. A stratum that was not sampled keeps the
        prior's full uncertainty; a terminal one is exact.
    """
    centre, strength = mean[..., None], strength[..., None]
    alpha = strength * centre + outcomes.num_correct
    beta = strength * (1.0 - centre) + outcomes.num_verified - outcomes.num_correct
    draws = generator.beta(alpha, beta, size=(num_draws, *alpha.shape))
    return np.where(np.isnan(outcomes.terminal), draws, outcomes.terminal)


def _share(part: Int[np.ndarray, "*batch"], whole: Int[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
