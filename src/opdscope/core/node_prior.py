"""The prior of success at the nodes of a run, as one teacher sees them: learned from their outcomes, and drawn from given those of a node.

A mixture of nodes whose strata do not differ, of nodes where success follows the teacher's signal (:mod:`opdscope.core.signal_prior`), and of nodes
where one token is unlike all others (:mod:`opdscope.core.odd_token`). How often each occurs is learned from all nodes together.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from opdscope.core import odd_token, signal_prior
from opdscope.core.odd_token import OddLikelihood, OddOutcomes, OddPrior
from opdscope.core.signal_prior import SAME, SLOPES, VALUES
from opdscope.core.stratum_tables import STRENGTHS, StratumTable, tabulate
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

_ADDED, _STEPS = 0.1, 100
"""Nodes added to every cell, and steps of expectation maximisation."""

_STEPS_A_CHOICE = 20
"""So many of them with the same chances of which token is the odd one."""

_SAME_AT_FIRST, _ODD_AT_FIRST = 0.9, 0.05
"""Shares that the search begins with: what outcomes cannot tell from no difference at all is taken for none."""


@dataclass(frozen=True)
class NodeOutcomes:
    """Outcomes of some nodes as the likelihood under every teacher takes them."""

    table: StratumTable
    """By stratum."""
    odd: OddOutcomes
    """With one odd token."""
    is_open: Bool[np.ndarray, "node stratum"]
    """Whether a stratum has a probability and does not end the response, so that its success is unknown."""

    @staticmethod
    def of(
        outcomes: StratumOutcomes,
        num_tokens: Float[np.ndarray, "node stratum"],
        probs: Float[np.ndarray, "node stratum"],
        is_tail: Bool[np.ndarray, "node stratum"],
    ) -> "NodeOutcomes":
        """Of these.

        Args:
            outcomes: Outcomes, `node × stratum`.
            num_tokens: From :func:`opdscope.core.stratum_tables.stratum_tokens`.
            probs: The student's probabilities.
            is_tail: Which stratum is the tail: several tokens, which are not odd together.

        Raises:
            ShapeError: If shapes differ.
        """
        if not outcomes.num_correct.shape == probs.shape == is_tail.shape:
            raise ShapeError(f"expected the same nodes and strata, found {outcomes.num_correct.shape}, {probs.shape} and {is_tail.shape}")
        table = tabulate(outcomes, num_tokens)
        is_open = (probs > 0) & np.isnan(outcomes.terminal)
        return NodeOutcomes(table, OddOutcomes.of(table, probs, is_open & (probs > 1e-9) & ~is_tail), is_open)

    def at(self, part: Int[np.ndarray, "member"]) -> "NodeOutcomes":
        """Of some of the nodes."""
        return NodeOutcomes(self.table.at(part), self.odd.at(part), self.is_open[part])


@dataclass(frozen=True)
class NodeLikelihood:
    """Likelihood of each node's outcomes in every cell of the prior, as one teacher sees them; the largest of a node is 1."""

    along: Float[np.ndarray, "node cell"]
    """In every cell of slope, strength and value."""
    odd: OddLikelihood
    """With one odd token."""
    is_open: Bool[np.ndarray, "node stratum"]
    """Whether a stratum's success is unknown."""

    @staticmethod
    def of(told: NodeOutcomes, signal: Float[np.ndarray, "node stratum"]) -> "NodeLikelihood":
        """Of these outcomes.

        Args:
            told: The outcomes.
            signal: The teacher's, from :func:`opdscope.core.signal_prior.scaled_signal`.

        Raises:
            ShapeError: If shapes differ.
        """
        along = signal_prior.signal_logs(told.table, signal).swapaxes(2, 3).reshape(len(signal), int(np.prod(signal_prior.SHAPE)))
        largest = np.maximum(along.max(axis=1, initial=-np.inf), told.odd.largest)
        along -= largest[:, None]
        return NodeLikelihood(np.exp(along, out=along), OddLikelihood(told.odd, signal, np.exp(told.odd.largest - largest)), told.is_open)


@dataclass(frozen=True)
class NodePrior:
    """How often nodes of each kind occur."""

    along: Float[np.ndarray, "slope strength value"]
    """Share of nodes in each cell along the signal."""
    odd_share: float
    """Share of nodes with an odd token among those that can have one; with the cells it sums to one."""
    odd: OddPrior
    """What they are like."""

    @property
    def slopes(self) -> Float[np.ndarray, "slope"]:
        """Share of nodes at each slope, among those without an odd token."""
        slopes = self.along.sum(axis=(1, 2))
        return slopes / slopes.sum()


def fit_node_prior(likelihood: NodeLikelihood) -> NodePrior:
    """The empirical-Bayes prior, by expectation maximisation.

    Args:
        likelihood: Of the nodes to learn from.

    Returns:
        Shares that sum to one; without a node those that the search begins with.

    References:
        Laird (1978), Nonparametric maximum likelihood estimation of a mixing distribution.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> signal = rng.normal(size=(400, 4))
        >>> success = expit(signal)  # a slope of one
        >>> outcomes = StratumOutcomes(rng.binomial(20, success), np.full((400, 4), 20), np.full((400, 4), np.nan))
        >>> probs, no_tail = np.full((400, 4), 0.25), np.zeros((400, 4), dtype=bool)
        >>> told = NodeOutcomes.of(outcomes, np.ones((400, 4)), probs, no_tail)
        >>> prior = fit_node_prior(NodeLikelihood.of(told, signal))
        >>> bool(prior.slopes[8:10].sum() > 0.9)
        True
    """
    pairs = np.full(signal_prior.SHAPE[:2], (1.0 - _SAME_AT_FIRST - _ODD_AT_FIRST) / (signal_prior.SHAPE[0] * signal_prior.SHAPE[1] - 1))
    pairs[SAME] = _SAME_AT_FIRST
    prior = NodePrior(np.repeat(pairs[..., None], len(VALUES), axis=2) / len(VALUES), _ODD_AT_FIRST, OddPrior.even())
    for _ in range(_STEPS // _STEPS_A_CHOICE if len(likelihood.along) else 0):
        chances = likelihood.odd.chances(prior.odd)
        of_odd = likelihood.odd.total(chances)
        for _ in range(_STEPS_A_CHOICE):
            prior = _step(prior, likelihood, of_odd)
        odd = likelihood.odd.learned_weights(prior.odd, chances, prior.odd_share, _evidence(prior, likelihood.along, of_odd))
        prior = replace(prior, odd=odd)
    return prior


def _step(prior: NodePrior, likelihood: NodeLikelihood, of_odd: Float[np.ndarray, "node odd_cell"]) -> NodePrior:
    """One step of expectation maximisation: slopes go with strengths, and values with neither."""
    inverse = 1.0 / _evidence(prior, likelihood.along, of_odd)
    expected = prior.along * (inverse @ likelihood.along).reshape(signal_prior.SHAPE)
    expected_odd = prior.odd_share * prior.odd.cells * (inverse @ of_odd).reshape(odd_token.SHAPE)
    pairs, values = expected.sum(axis=2) + _ADDED, expected.sum(axis=(0, 1)) + _ADDED
    # nodes that can have no odd token do not tell how many of the others have one
    number = float(np.sum(likelihood.odd.told.possible.any(axis=1))) + odd_token.ADDED + _ADDED * pairs.size
    share = (float(expected_odd.sum()) + odd_token.ADDED) / number
    along = (pairs / pairs.sum())[..., None] * (values / values.sum())
    return NodePrior((1.0 - share) * along, share, prior.odd.updated(expected_odd))


def _evidence(
    prior: NodePrior, along: Float[np.ndarray, "node cell"], odd: Float[np.ndarray, "node odd_cell"]
) -> Float[np.ndarray, "node"]:
    """Likelihood of each node under the whole prior."""
    return along @ prior.along.astype(np.float32).ravel() + odd @ (prior.odd_share * prior.odd.cells).astype(np.float32).ravel()


@dataclass(frozen=True)
class SuccessDraws:
    """Posterior draws given that strata differ."""

    success: Float[np.ndarray, "draw node stratum"]
    """Of every stratum, in [0, 1]; 0 for one of no probability."""
    slope: Float[np.ndarray, "draw node"]
    """In logits of success per unit of the signal; 0 where there is an odd token."""
    strength: Float[np.ndarray, "draw node"]
    """Of the prior of a token within the tail, in continuations; may be infinite."""


def draw_success(
    prior: NodePrior,
    likelihood: NodeLikelihood,
    outcomes: StratumOutcomes,
    num_tokens: Float[np.ndarray, "node stratum"],
    num_draws: int,
    generators: Sequence[np.random.Generator],
) -> SuccessDraws:
    """Posterior draws of every stratum's success, given that strata differ.

    Args:
        prior: That of the nodes together.
        likelihood: Of these nodes.
        outcomes: What was observed.
        num_tokens: Tokens that a stratum is worth.
        num_draws: How many draws.
        generators: Source of randomness of each node.
    """
    differing = prior.along.copy()
    differing[SAME] = 0.0
    signal, chances = likelihood.odd.signal, likelihood.odd.chances(prior.odd)
    of_odd = likelihood.odd.total(chances) * (prior.odd_share * prior.odd.cells).astype(np.float32).ravel()
    along = likelihood.along * differing.astype(np.float32).ravel()
    cells = np.cumsum(np.concatenate([along, of_odd], axis=1), axis=1, dtype=np.float64)
    numbers = np.empty((len(signal), 5, num_draws))
    cell = np.empty((len(signal), num_draws), dtype=np.int64)
    for i, source in enumerate(generators):
        source.random(out=numbers[i])
        cell[i] = np.searchsorted(cells[i, :-1], numbers[i, 0] * cells[i, -1], side="right")
    is_odd = cell >= differing.size
    which, strength_cell, value = np.unravel_index(np.where(is_odd, 0, cell), differing.shape)
    # anywhere in the cell
    slope = np.where(is_odd, 0.0, SLOPES[which] * np.exp(0.7 * numbers[:, 1] - 0.35))
    level = VALUES[value] + (numbers[:, 2] - 0.5) * (VALUES[1] - VALUES[0])
    strength = STRENGTHS[strength_cell]
    token, offset = np.zeros_like(cell), np.zeros_like(level)
    node, draw = np.nonzero(is_odd)
    odd = likelihood.odd.draw_odd(node, chances, cell[node, draw] - differing.size, numbers[node, 1:4, draw])
    level[node, draw], token[node, draw], offset[node, draw], strength[node, draw] = odd.level, odd.token, odd.offset, odd.strength
    found, every = np.zeros((num_draws, *signal.shape)), np.arange(num_draws)
    for i, source in enumerate(generators):
        logits = level[i, :, None] + slope[i, :, None] * signal[i]
        logits[every, token[i]] += offset[i]
        live = np.flatnonzero(likelihood.is_open[i])
        centre = expit(np.clip(logits[:, live], -12.0, 12.0))
        sharp = np.isinf(strength[i, :, None])
        total = np.where(sharp, 1.0, num_tokens[i, live] * (np.where(sharp, 0.0, strength[i, :, None]) + 1.0) - 1.0)
        correct, count = outcomes.num_correct[i, live], outcomes.num_verified[i, live]
        drawn = source.beta(total * centre + correct, total * (1.0 - centre) + (count - correct))
        found[:, i, live] = np.where(sharp, centre, drawn)
    # the tail was not asked for the odd token, and may hold it: how its tokens differ, nothing tells
    strength[node, draw] = STRENGTHS[(numbers[node, 4, draw] * (len(STRENGTHS) - 1)).astype(np.int64)]
    return SuccessDraws(np.where(np.isnan(outcomes.terminal), found, outcomes.terminal), slope.T, strength.T)
