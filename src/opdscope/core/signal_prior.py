r"""Cells of the prior of success that follow a teacher's signal: strata that it pushes may succeed more often, or less.

Success alone does not know the teacher: a prior under which strata are exchangeable expects every cosine to be as often positive as negative. A
good teacher's is positive nearly everywhere, and where a node's outcomes say little its cosine would be pulled to zero. So the centre of a
stratum's prior is moved along the teacher's signal, by a slope that differs between nodes:

.. math:: S_j \sim \operatorname{Beta}(\kappa m_j, \kappa (1 - m_j)), \qquad \operatorname{logit} m_j = \operatorname{logit} m + b z_j.

Infinite strength and no slope is a node whose strata do not differ.
"""

import numpy as np
from jaxtyping import Float

from opdscope.core.stratum_tables import CENTRES, STRENGTHS, StratumTable
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

SLOPES = np.array([-3.2, -1.6, -0.8, -0.35, -0.15, 0.0, 0.15, 0.35, 0.8, 1.6, 3.2])
"""Grid of slopes, in logits of success per root mean square of the signal; doubled from one to the next."""

VALUES = np.linspace(-5.5, 5.5, 23)
"""Grid over the unknown value of a node, in logits."""

SHAPE = len(SLOPES), len(STRENGTHS), len(VALUES)
"""Of the grid."""

SAME = (len(SLOPES) // 2, len(STRENGTHS) - 1)
"""Cell of nodes whose strata do not differ."""

_LARGEST = 5.0
"""Of a signal, in its root mean square: further out nothing tells whether slopes go on."""

_STEP = CENTRES[1] - CENTRES[0]
"""Of the table of likelihoods; two make a step of `VALUES`."""

_MOST = int(np.ceil(np.max(SLOPES) * _LARGEST / _STEP)) + 1
"""Steps that a slope moves a centre at most, and one more to interpolate."""

_FIRST = _MOST + int(np.round((VALUES[0] - CENTRES[0]) / _STEP))
"""Where the lowest value lies in a table that goes on by so much."""

_NODES_AT_ONCE = 32
"""What is added up for so many stays in a processor's cache."""


def scaled_signal(
    probs: Float[np.ndarray, "node stratum"], signal: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes
) -> tuple[Float[np.ndarray, "node stratum"], float]:
    """A signal less its mean under the student, in units of its root mean square over the strata that are sampled, and that unit.

    One unit for all nodes: a teacher that knows says as much about a rare token as about a frequent one. Zero where a signal is infinite, and
    where nothing is sampled; the unit is 1 where there is no push at all.
    """
    shares = probs / probs.sum(axis=-1, keepdims=True)
    finite = np.where(np.isfinite(signal), signal, 0.0)
    centred = finite - np.sum(shares * finite, axis=-1, keepdims=True)
    live = (probs > 1e-9) & np.isnan(outcomes.terminal) & np.isfinite(signal)
    unit = float(np.sqrt(np.mean(centred[live] ** 2))) if live.any() else 0.0
    unit = unit if unit > 1e-9 else 1.0
    return np.where(live, np.clip(centred / unit, -_LARGEST, _LARGEST), 0.0), unit


def signal_logs(table: StratumTable, signal: Float[np.ndarray, "node stratum"]) -> Float[np.ndarray, "node slope value strength"]:
    """Log-likelihood of each node's outcomes in every cell of slope, value and strength, interpolated between tabulated centres.

    Args:
        table: From :func:`opdscope.core.stratum_tables.tabulate`.
        signal: From :func:`scaled_signal`.

    Raises:
        ShapeError: If shapes differ.
    """
    if signal.shape != table.index.shape:
        raise ShapeError(f"expected the same nodes and strata, found {signal.shape} and {table.index.shape}")
    # a slope moves all values alike: every node, stratum and slope takes one run of rows, each second row of the table
    windows = _runs_of_values(table.rows)
    logs = np.zeros((len(signal), len(SLOPES), len(VALUES) * len(STRENGTHS)), dtype=np.float32)
    for start in range(0, len(signal), _NODES_AT_ONCE):
        part = slice(start, start + _NODES_AT_ONCE)
        for j in np.flatnonzero(table.tells[part].any(axis=0)).tolist():
            moved = signal[part, j, None] * SLOPES / _STEP
            below = np.floor(moved).astype(np.int64)
            share = (moved - below).astype(np.float32)[..., None]
            for place, weight in ((_FIRST + below, 1.0 - share), (_FIRST + below + 1, share)):
                rows = windows[table.index[part, j, None], place % 2, place // 2]
                rows *= weight
                logs[part] += rows
    return logs.reshape(len(signal), len(SLOPES), len(VALUES), len(STRENGTHS))


def _runs_of_values(rows: Float[np.ndarray, "row centre strength"]) -> Float[np.ndarray, "row 2 place cell"]:
    """Log-likelihoods at all of `VALUES` from every place of the table on, which goes on at both ends as it ends; even places and odd ones."""
    longer = np.pad(rows, ((0, 0), (_MOST, _MOST + 1), (0, 0)), mode="edge")
    half = longer.shape[1] // 2
    by_parity = (
        longer[:, : 2 * half].reshape(len(rows), half, 2, len(STRENGTHS)).swapaxes(1, 2).reshape(len(rows), 2, half * len(STRENGTHS))
    )
    return np.lib.stride_tricks.sliding_window_view(by_parity, len(VALUES) * len(STRENGTHS), axis=2)[:, :, :: len(STRENGTHS)]
