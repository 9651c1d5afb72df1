r"""Cosines of a node whose tail is a single stratum, though its tokens need not succeed equally often.

A cosine over the vocabulary counts how success and push go together within the tail as well. What the student hardly ever does differs most from
what a teacher would have it do: with the tail taken for one token, intervals of a good teacher's cosine missed the truth at two of three nodes
where the student is nearly certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.node_prior import SuccessDraws
from opdscope.core.stratum_tables import stratum_tokens


@dataclass(frozen=True)
class Push:
    """A teacher's push at some nodes; the last axis is that of strata."""

    probs: Float[np.ndarray, "node stratum"]
    """The student's, summing to one."""
    squared_probs: Float[np.ndarray, "node stratum"]
    """Summed over the tokens of each stratum."""
    is_tail: Bool[np.ndarray, "node stratum"]
    """Which stratum is the tail."""
    signal: Float[np.ndarray, "node stratum"]
    """For the tail its student-weighted mean."""
    signal_variance: Float[np.ndarray, "node"]
    """Over the full vocabulary."""
    gradient: Float[np.ndarray, "node stratum"]
    """For the tail its student-weighted mean."""
    gradient_squared_norm: Float[np.ndarray, "node"]
    """Over the full vocabulary."""

    def at(self, part: Int[np.ndarray, "member"]) -> "Push":
        """That at some of the nodes."""
        return Push(*(getattr(self, field.name)[part] for field in fields(self)))

    @property
    def num_tokens(self) -> Float[np.ndarray, "node stratum"]:
        """Tokens of equal probability that the stratum is worth; 1 for a candidate."""
        return stratum_tokens(self.probs, self.squared_probs, self.is_tail)


def draw_cosines(
    push: Push, draws: SuccessDraws, unit: float, generators: Sequence[np.random.Generator]
) -> tuple[Float[np.ndarray, "draw node"], Float[np.ndarray, "draw node"]]:
    r"""Draws of alignment score and natural alignment, with what lies within the tail drawn too.

    Args:
        push: The teacher's.
        draws: Of success.
        unit: Of the signal that slopes are per.
        generators: Source of randomness of each node.

    Returns:
        Both in [-1, 1]; NaN where there is no range of success, or no push.

    Notes:
        The tail counts as K tokens of equal probability with success :math:`\bar S + \beta (f_k - \bar f) + \varepsilon_k`. The slope is the
        prior's, :math:`\beta = b \bar S (1 - \bar S)` per unit, the variance of ε that of one token of the prior,
        :math:`\bar S (1 - \bar S) / (\kappa + 1)`, with κ as drawn (beside an odd token, any); over K tokens its spread is drawn from a gamma and
        its correlation with the signal from that of a random direction in K − 1 dimensions. How much the signal varies there is what its variance
        over the vocabulary leaves beside that between strata.
    """
    p, tail = push.probs / push.probs.sum(axis=-1, keepdims=True), push.is_tail & (push.probs > 0)
    success = np.where(p > 0, draws.success, 0.0)
    advantage = success - np.sum(p * success, axis=-1, keepdims=True)
    centred = push.signal - np.sum(p * push.signal, axis=-1, keepdims=True)
    mass, tokens = np.sum(np.where(tail, p, 0.0), axis=-1), np.max(push.num_tokens, axis=-1)
    squared = np.sum(np.where(tail, push.squared_probs, 0.0), axis=-1)
    left = np.maximum(push.signal_variance - np.sum(p * centred**2, axis=-1), 0.0)
    several = (tokens > 1.001) & (mass > 0)
    signal_spread = np.sqrt(np.where(several, left / np.where(several, mass, 1.0), 0.0))
    norm = np.maximum(push.gradient_squared_norm - np.sum(np.where(tail, 0.0, push.gradient**2), axis=-1), 0.0)
    mean_gradient = np.sum(np.where(tail, push.gradient, 0.0), axis=-1)
    gradient_spread = np.sqrt(np.where(several, np.maximum(norm / tokens - mean_gradient**2, 0.0), 0.0))
    together, spread = _inside(np.sum(np.where(tail, success, 0.0), axis=-1), draws, signal_spread / unit, tokens, several, generators)
    natural = np.sum(p * advantage * push.signal, axis=-1) + mass * together * signal_spread
    euclidean = np.sum(p * advantage * push.gradient, axis=-1) + mass * together * gradient_spread
    variance = np.sum(p * advantage**2, axis=-1) + mass * spread
    ideal = np.sum(push.squared_probs * advantage**2, axis=-1) + squared * spread
    return _cosine(euclidean, ideal * push.gradient_squared_norm), _cosine(natural, variance * push.signal_variance)


def _inside(
    success: Float[np.ndarray, "draw node"],
    draws: SuccessDraws,
    signal_spread: Float[np.ndarray, "node"],
    tokens: Float[np.ndarray, "node"],
    several: Bool[np.ndarray, "node"],
    generators: Sequence[np.random.Generator],
) -> tuple[Float[np.ndarray, "draw node"], Float[np.ndarray, "draw node"]]:
    """Covariance of success with the signal within the tail, per deviation of the signal, and the variance of success there."""
    room = success * (1.0 - success)
    along = room * draws.slope * signal_spread
    chance, correlation = np.zeros_like(room), np.zeros_like(room)
    for i in np.flatnonzero(several).tolist():
        source, count = generators[i], len(room)
        chance[:, i] = source.gamma(0.5 * (tokens[i] - 1.0), 2.0 / tokens[i], count)
        sign = np.where(source.random(count) < 0.5, -1.0, 1.0)
        # two tokens leave one dimension, in which a correlation is plus or minus one
        correlation[:, i] = sign * np.sqrt(source.beta(0.5, max(0.5 * (tokens[i] - 2.0), 1e-3), count))
    deviation = np.sqrt(chance * room / (draws.strength + 1.0))
    together = along + correlation * deviation
    variance = along**2 + 2.0 * along * correlation * deviation + deviation**2
    # success lies in [0, 1], so that its variance cannot be more than this
    factor = np.sqrt(np.minimum(1.0, room / np.maximum(variance, 1e-300)))
    return np.where(several, together * factor, 0.0), np.where(several, variance * factor**2, 0.0)


def _cosine(product: Float[np.ndarray, "draw node"], squares: Float[np.ndarray, "draw node"]) -> Float[np.ndarray, "draw node"]:
    scale = np.sqrt(squares)
    defined = scale > 1e-12  # as in core.alignment
    return np.where(defined, np.clip(product / np.where(defined, scale, 1.0), -1.0, 1.0), np.nan)
