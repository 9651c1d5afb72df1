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

from opdscope.core.stratum_tables import CENTRES, STRENGTHS, tabulate
from opdscope.core.success import StratumOutcomes

VALUES = np.linspace(-5.5, 5.5, 12)
"""Grid over the common centre of all strata but the odd one, in logits."""

_SIZES = np.array([0.5, 1.0, 2.0, 3.5, 6.0])

OFFSETS = np.concatenate([-_SIZES[::-1], _SIZES])
"""Grid of differences of the odd one, in logits; those below zero come first."""

ODD_STRENGTHS = STRENGTHS[[4, 6, 8]]
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
class OddLikelihood:
    """Of the outcomes of nodes, should one of their strata be the odd one."""

    parts: Float[np.ndarray, "node stratum offset value strength"]
    """By which it is; zero for a stratum that cannot be: the tail, whose tokens may differ, a token that ends the response, one of no probability."""
    signal: Float[np.ndarray, "node stratum"]
    """The teacher's, scaled."""
    group: Int[np.ndarray, "node stratum"]
    """Of the stratum's probability."""
    possible: Bool[np.ndarray, "node stratum"]
    """Whether it can be the odd one."""

    def chances(self, prior: OddPrior) -> Float[np.ndarray, "side node stratum lean"]:
        """Of each stratum to be the odd one, before outcomes; `side` is below and above the others. Zero for all of a node that has none."""
        readiness = self._readiness() * prior.weights[self.group][..., None]
        return readiness / np.maximum(readiness.sum(axis=2, keepdims=True), 1e-300)

    def total(self, chances: Float[np.ndarray, "side node stratum lean"]) -> Float[np.ndarray, "node cell"]:
        """Likelihood in every cell of the grid, whichever stratum is the odd one."""
        by_side = [np.matmul(own.swapaxes(1, 2), chances[k].astype(np.float32)) for k, own in enumerate(self._sides())]
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
            posterior = (own @ cells.astype(np.float32)) * chances[k] / evidence[:, None, None]
            chosen += posterior.sum(axis=-1)
            scale = np.sum(readiness[k] * prior.weights[self.group][..., None], axis=1)
            per_unit = posterior.sum(axis=1) / np.maximum(scale, 1e-300)
            offered += np.einsum("nkb,nb->nk", readiness[k], per_unit)
        number, room = (np.bincount(self.group.ravel(), amount.ravel(), minlength=count) for amount in (chosen, offered))
        # as if one token of each group had been offered together, and each been chosen equally often
        weights = (number + _ADDED_CHOICE) / (room + _ADDED_CHOICE * count)
        return OddPrior(prior.cells, weights / weights.sum())

    def draw_odd(
        self,
        node: int,
        chances: Float[np.ndarray, "side node stratum lean"],
        cell: Int[np.ndarray, "draw"],
        source: np.random.Generator,
    ) -> tuple[Float[np.ndarray, "draw stratum"], Float[np.ndarray, "draw"]]:
        """Centres of all strata of a node, in logits, and their strength, given cells of the grid; anywhere in the cell."""
        offset, value, strength, lean = np.unravel_index(cell, SHAPE)
        side = (offset >= len(_SIZES)).astype(np.int64)
        posterior = np.cumsum(chances[side, node, :, lean] * self.parts[node][:, offset, value, strength].T, axis=1)
        odd = np.sum(source.random((len(cell), 1)) * posterior[:, -1:] >= posterior[:, :-1], axis=1)
        half = 0.5 * (VALUES[1] - VALUES[0])
        level = VALUES[value] + source.uniform(-half, half, len(cell))
        centres = np.repeat(level[:, None], posterior.shape[1], axis=1)
        centres[np.arange(len(cell)), odd] += OFFSETS[offset] * np.exp(source.uniform(-0.35, 0.35, len(cell)))
        return centres, ODD_STRENGTHS[strength]

    def _readiness(self) -> Float[np.ndarray, "side node stratum lean"]:
        push = np.array([-1.0, 1.0])[:, None, None, None] * LEANS * self.signal[..., None]
        return np.where(self.possible[..., None], np.exp(push), 0.0)

    def _sides(self) -> Float[np.ndarray, "side node stratum cell"]:
        """Below and above the others; cells are those of difference, value and strength."""
        nodes, strata = self.signal.shape
        return self.parts.reshape(nodes, strata, 2, int(np.prod(SHAPE[:3])) // 2).transpose(2, 0, 1, 3)


def odd_logs(
    outcomes: StratumOutcomes, num_tokens: Float[np.ndarray, "node stratum"], possible: Bool[np.ndarray, "node stratum"]
) -> Float[np.ndarray, "node stratum offset value strength"]:
    """Log-likelihood of each node's outcomes by which stratum is the odd one; minus infinity where it cannot be; arguments as for `tabulate`."""
    table, index = tabulate(outcomes, num_tokens, ODD_STRENGTHS)
    at = _nearest(VALUES)
    own = table[index]
    common = own[:, :, at]
    shifted = own[:, :, _nearest(np.clip(VALUES + OFFSETS[:, None], CENTRES[0], CENTRES[-1]))]
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
