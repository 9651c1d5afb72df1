r"""Nodes at which one token succeeds more or less often than all others: a slip, or a repair.

A reasoning chain mostly runs on whatever is written, and where it does not, one token turns it. Under a prior that lets all strata differ alike, such
a node's outcomes leave open which of them differ, and so which way a cosine points. Here all strata but one have a common centre,

.. math:: \operatorname{logit} m_j = v + \delta \, 1_{j = k},

and which stratum k is the odd one goes with what is known of it before it is sampled, its probability and the teacher's signal:

.. math:: P(k) \propto w_{g(p_k)} \exp(\pm b z_k),

with g a group of probabilities and the sign that of δ. How often each common value, difference, lean b and weight w occurs is learned from all nodes.
Around these centres success still varies with a finite strength: two tokens of a network never succeed exactly as often.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.stratum_tables import CENTRES, STRENGTHS, StratumTable

VALUES = np.linspace(-5.5, 5.5, 12)
"""Grid over the common centre of all strata but the odd one, in logits."""

_SIZES = np.array([0.5, 1.0, 2.0, 3.5, 6.0])

OFFSETS = np.concatenate([-_SIZES[::-1], _SIZES])
"""Grid of differences of the odd one, in logits; those below zero come first."""

_WHICH_STRENGTHS = [4, 6, 8]

ODD_STRENGTHS = STRENGTHS[_WHICH_STRENGTHS]
"""Grid of strengths of all strata's priors: 6, 30 and 139 continuations."""

LEANS = np.array([-1.0, 0.0, 1.0])
"""Grid of how far the odd one is where the teacher's signal points, per root mean square of the signal."""

SHAPE = len(OFFSETS), len(VALUES), len(ODD_STRENGTHS), len(LEANS)
"""Of the grid."""

_EDGES = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 0.6])
"""Between groups of probabilities."""

_SPREAD_VALUE, _SPREAD_OFFSET = 2.0, 1.0
"""Standard deviations of the kernel that shares are smoothed by: logits of the common centre, and steps of the difference."""

_ADDED_CELL, _ADDED_PUSH, _ADDED_CHOICE = 0.01, 0.1, 1.0
"""Nodes added to every cell of value and difference, to every one of strength and lean, and choices added to every group of probabilities."""

ADDED = _ADDED_CELL * len(OFFSETS) * len(VALUES)
"""Nodes with an odd token that are added in all."""


@dataclass(frozen=True)
class OddPrior:
    """What nodes with an odd token are like."""

    cells: Float[np.ndarray, "offset value strength lean"]
    """Share of such nodes in each cell of the grid; sums to one."""
    weights: Float[np.ndarray, "group"]
    """How readily a token of each group of probabilities is the odd one; sums to one."""

    @staticmethod
    def even() -> "OddPrior":
        """What the search begins with."""
        return OddPrior(np.full(SHAPE, 1.0 / np.prod(SHAPE)), np.full(len(_EDGES) + 1, 1.0 / (len(_EDGES) + 1)))

    def updated(self, expected: Float[np.ndarray, "offset value strength lean"]) -> "OddPrior":
        """The shares that follow from the expected number of nodes in each cell, smoothed.

        References:
            Silverman et al. (1990), A smoothed EM approach to indirect estimation problems.
        """
        places = _smoothed(expected.sum(axis=(2, 3))) + _ADDED_CELL
        pushes = expected.sum(axis=(0, 1)) + _ADDED_PUSH
        return OddPrior((places / places.sum())[..., None, None] * (pushes / pushes.sum()), self.weights)


@dataclass(frozen=True)
class OddDraws:
    """Draws of nodes with an odd token."""

    level: Float[np.ndarray, "draw"]
    """Common centre of all others, in logits."""
    token: Int[np.ndarray, "draw"]
    """Which stratum is the odd one."""
    offset: Float[np.ndarray, "draw"]
    """How far its centre is off, in logits."""
    strength: Float[np.ndarray, "draw"]
    """Of all strata's priors, in continuations."""


@dataclass(frozen=True)
class OddOutcomes:
    """What outcomes of nodes say, should one of their strata be the odd one, whoever the teacher is."""

    parts: Float[np.ndarray, "node stratum offset value strength"]
    """Likelihood by which it is, the largest of a node being 1; zero for a stratum that cannot be."""
    largest: Float[np.ndarray, "node"]
    """Log-likelihood that this is; minus infinity where no stratum can be the odd one."""
    group: Int[np.ndarray, "node stratum"]
    """Of the stratum's probability."""
    possible: Bool[np.ndarray, "node stratum"]
    """Whether it can be the odd one: not the tail, whose tokens may differ, nor a token that ends the response, nor one of no probability."""

    @staticmethod
    def of(table: StratumTable, probs: Float[np.ndarray, "node stratum"], possible: Bool[np.ndarray, "node stratum"]) -> "OddOutcomes":
        """Of tabulated outcomes, at the student's probabilities."""
        logs = odd_logs(table, possible)
        largest = logs.max(axis=(1, 2, 3, 4), initial=-np.inf)
        logs -= np.where(np.isfinite(largest), largest, 0.0).astype(np.float32)[:, None, None, None, None]
        return OddOutcomes(np.exp(logs, out=logs), largest, probability_group(probs), possible)

    def at(self, part: Int[np.ndarray, "member"]) -> "OddOutcomes":
        """Of some of the nodes."""
        return OddOutcomes(self.parts[part], self.largest[part], self.group[part], self.possible[part])


@dataclass(frozen=True)
class OddLikelihood:
    """Of the outcomes of nodes with one odd stratum, as one teacher sees them."""

    told: OddOutcomes
    """By which stratum it is."""
    signal: Float[np.ndarray, "node stratum"]
    """The teacher's, scaled."""
    scale: Float[np.ndarray, "node"]
    """What the largest of a node counts as."""

    def chances(self, prior: OddPrior) -> Float[np.ndarray, "side node stratum lean"]:
        """Of each stratum to be the odd one, before outcomes; `side` is below and above the others. Zero for all of a node that has none."""
        readiness = self._readiness() * prior.weights[self.told.group][..., None]
        return readiness / np.maximum(readiness.sum(axis=2, keepdims=True), 1e-300)

    def total(self, chances: Float[np.ndarray, "side node stratum lean"]) -> Float[np.ndarray, "node cell"]:
        """Likelihood in every cell of the grid, whichever stratum is the odd one."""
        scaled = (chances * self.scale[:, None, None]).astype(np.float32)
        by_side = [np.matmul(own.swapaxes(1, 2), scaled[k]) for k, own in enumerate(self._sides())]
        return np.concatenate(by_side, axis=1).reshape(len(self.signal), int(np.prod(SHAPE)))

    def learned_weights(
        self, prior: OddPrior, chances: Float[np.ndarray, "side node stratum lean"], share: float, evidence: Float[np.ndarray, "node"]
    ) -> OddPrior:
        r"""How readily each group of probabilities is chosen, one step nearer to what outcomes say.

        Args:
            prior: So far.
            chances: Under it.
            share: Of nodes with an odd token.
            evidence: Likelihood of each node under the whole prior.

        Notes:
            With r the posterior chances and :math:`x_k = \exp(\pm b z_k)`,
            :math:`w_g = \sum_{g(p_k) = g} r_k / \sum_{g(p_k) = g} x_k \, \big(\sum_j r_j / \sum_j w_{g(p_j)} x_j\big)`, summed over nodes,
            which never lowers the likelihood.

        References:
            Hunter (2004), MM algorithms for generalized Bradley-Terry models.
        """
        half = len(_SIZES)
        readiness, count = self._readiness(), len(prior.weights)
        chosen, offered = np.zeros((2, *self.signal.shape))
        for k, own in enumerate(self._sides()):
            cells = share * prior.cells[k * half : (k + 1) * half].reshape(-1, len(LEANS))
            posterior = (own @ cells.astype(np.float32)) * chances[k] * (self.scale / evidence)[:, None, None]
            chosen += posterior.sum(axis=-1)
            offer = np.sum(readiness[k] * prior.weights[self.told.group][..., None], axis=1)
            per_unit = posterior.sum(axis=1) / np.maximum(offer, 1e-300)
            offered += np.einsum("nkb,nb->nk", readiness[k], per_unit)
        number, room = (np.bincount(self.told.group.ravel(), amount.ravel(), minlength=count) for amount in (chosen, offered))
        # as if one token of each group had been offered together, and each been chosen equally often
        weights = (number + _ADDED_CHOICE) / (room + _ADDED_CHOICE * count)
        return OddPrior(prior.cells, weights / weights.sum())

    def draw_odd(
        self,
        node: Int[np.ndarray, "draw"],
        chances: Float[np.ndarray, "side node stratum lean"],
        cell: Int[np.ndarray, "draw"],
        numbers: Float[np.ndarray, "draw 3"],
    ) -> OddDraws:
        """Draws given nodes and cells of the grid, anywhere in the cell.

        Args:
            node: Of each draw.
            chances: Of each stratum to be the odd one.
            cell: Of each draw.
            numbers: Uniform in [0, 1), for the difference, the common centre and the odd one.
        """
        offset, value, strength, lean = np.unravel_index(cell, SHAPE)
        side = (offset >= len(_SIZES)).astype(np.int64)
        posterior = np.cumsum(chances[side, node, :, lean] * self.told.parts[node, :, offset, value, strength], axis=1)
        odd = np.sum(numbers[:, 2:] * posterior[:, -1:] >= posterior[:, :-1], axis=1)
        level = VALUES[value] + (numbers[:, 1] - 0.5) * (VALUES[1] - VALUES[0])
        return OddDraws(level, odd, OFFSETS[offset] * np.exp(0.7 * numbers[:, 0] - 0.35), ODD_STRENGTHS[strength])

    def _readiness(self) -> Float[np.ndarray, "side node stratum lean"]:
        push = np.array([-1.0, 1.0])[:, None, None, None] * LEANS * self.signal[..., None]
        return np.where(self.told.possible[..., None], np.exp(push), 0.0)

    def _sides(self) -> Float[np.ndarray, "side node stratum cell"]:
        """Below and above the others; cells are those of difference, value and strength."""
        nodes, strata = self.signal.shape
        return self.told.parts.reshape(nodes, strata, 2, int(np.prod(SHAPE[:3])) // 2).transpose(2, 0, 1, 3)


def odd_logs(table: StratumTable, possible: Bool[np.ndarray, "node stratum"]) -> Float[np.ndarray, "node stratum offset value strength"]:
    """Log-likelihood of each node's outcomes by which stratum is the odd one; minus infinity where it cannot be."""
    own = table.rows[:, :, _WHICH_STRENGTHS]
    common = own[:, _nearest(VALUES)][table.index]
    shifted = own[:, _nearest(np.clip(VALUES + OFFSETS[:, None], CENTRES[0], CENTRES[-1]))][table.index]
    logs = (common.sum(axis=1, keepdims=True) - common)[:, :, None] + shifted
    return np.where(possible[:, :, None, None, None], logs, -np.inf)


def probability_group(probs: Float[np.ndarray, "node stratum"]) -> Int[np.ndarray, "node stratum"]:
    """Group of each stratum's probability."""
    return np.digitize(probs, _EDGES)


def _nearest(centre: Float[np.ndarray, "*cell"]) -> Int[np.ndarray, "*cell"]:
    return np.round((centre - CENTRES[0]) / (CENTRES[1] - CENTRES[0])).astype(np.int64)


def _kernel(count: int, spread: float) -> Float[np.ndarray, "to from"]:
    """Weights of a normal kernel on a grid; what leaves a cell arrives somewhere."""
    distance = np.arange(count)[:, None] - np.arange(count)
    weights = np.exp(-0.5 * (distance / spread) ** 2)
    return weights / weights.sum(axis=0)


_OVER_VALUES = _kernel(len(VALUES), _SPREAD_VALUE / (VALUES[1] - VALUES[0]))
_OVER_OFFSETS = np.kron(np.eye(2), _kernel(len(_SIZES), _SPREAD_OFFSET))
"""More and less often are different things, and not smoothed together."""


def _smoothed(shares: Float[np.ndarray, "offset value"]) -> Float[np.ndarray, "offset value"]:
    return _OVER_OFFSETS @ shares @ _OVER_VALUES.T
