"""Where in the chain: averages against depth, entropy and difficulty, and every node with the success of its candidates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_statistic, ratio
from opdscope.summary.measures import NodeMeasures, measure_nodes, score_table
from opdscope.summary.nodes import NodeArrays, Posterior, central_interval, node_posterior, read_nodes
from opdscope.summary.teachers import question_success
from opdscope.summary.weights import question_weights

_MOST_BINS, _NODES_A_BIN = 6, 20
"""Bins of an axis, and the least number of nodes in one."""


@dataclass(frozen=True)
class Bin:
    """Nodes between two values of what they are sorted by, and what is true of them on average."""

    low: float
    """Smallest value of the axis in it."""
    high: float
    """Largest one."""
    num_nodes: int
    """Nodes in it."""
    ideal_norm: Estimate
    """Root mean square of ‖g*‖, corrected for noise. An end is 0 where the corrected square would be negative."""
    natural_gain: dict[str, Estimate]
    """By teacher: mean natural gain of one token for the first objective."""


@dataclass(frozen=True)
class Chains:
    """What targeted rollouts say of single places of the chain."""

    scores: pa.Table
    """:func:`opdscope.summary.node_scores`, for the first objective only."""
    strata: pa.Table
    """One row per node and stratum: node_id, stratum, num_correct, num_verified; `success` and `ideal` (p (S − V), the component of the ideal
    gradient) as posterior means with companions `…_low` and `…_high` at the configured confidence."""
    along: dict[str, list[Bin]]
    """Bins by axis: `depth` (the position in the response), `entropy` (the student's, in nats), `difficulty` (the student's success on the
    question). Empty under `protocol: paper`, whose nodes stand for no others."""


def measure_chains(tables: Mapping[str, pa.Table], config: Config) -> Chains | None:
    """Everything about single places; None if the run has no targeted rollouts yet.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
    """
    nodes = read_nodes(tables)
    if not nodes.rows:
        return None
    posterior = node_posterior(tables, nodes, config)
    signals = tables["node_signals"]
    own = {
        **tables,
        "node_signals": signals.filter(pa.array([name == config.objectives[0] for name in signals["objective"].to_pylist()], pa.bool_())),
    }
    measures = measure_nodes(own, nodes, posterior, config)
    along = _along(tables, nodes, posterior, measures, config) if config.protocol == "default" else {}
    return Chains(score_table(nodes, posterior, measures), _stratum_table(nodes, posterior, config), along)


def _stratum_table(nodes: NodeArrays, posterior: Posterior, config: Config) -> pa.Table:
    level, draws = config.analysis.confidence, posterior.draws
    value = np.einsum("dns,ns->dn", draws, nodes.probs)
    node, stratum = np.nonzero(nodes.probs > 0)
    success, ideal = np.empty((len(node), 3)), np.empty((len(node), 3))
    for k in range(nodes.probs.shape[1]):
        rows, own = np.flatnonzero(stratum == k), node[stratum == k]
        success[rows] = central_interval(draws[:, own, k], level)
        ideal[rows] = central_interval(nodes.probs[own, k] * (draws[:, own, k] - value[:, own]), level)
    columns: dict[str, Any] = {
        "node_id": [nodes.rows[i]["node_id"] for i in node],
        "stratum": stratum,
        "num_correct": nodes.outcomes.num_correct[node, stratum],
        "num_verified": nodes.outcomes.num_verified[node, stratum],
    }
    for name, values in {"success": success, "ideal": ideal}.items():
        columns |= {name: values[:, 0], f"{name}_low": values[:, 1], f"{name}_high": values[:, 2]}
    return pa.table(columns)


def _along(
    tables: Mapping[str, pa.Table], nodes: NodeArrays, posterior: Posterior, measures: Sequence[NodeMeasures], config: Config
) -> dict[str, list[Bin]]:
    success = question_success(tables)
    axes = {
        "depth": np.array([row["position"] for row in nodes.rows], dtype=np.float64),
        "entropy": np.array([row["entropy"] for row in nodes.rows]),
        "difficulty": np.array([success[row["question_id"]] for row in nodes.rows]),
    }
    weights = question_weights(nodes.rows)
    return {
        name: [_bin(values, members, weights, nodes, posterior, measures, config.analysis.confidence) for members in _split(values)]
        for name, values in axes.items()
    }


def _split(values: Float[np.ndarray, "node"]) -> list[Int[np.ndarray, "member"]]:
    """Nodes in bins of about equal number; equal values are never parted."""
    defined = np.flatnonzero(~np.isnan(values))
    if not len(defined):
        return []
    count = int(np.clip(len(defined) // _NODES_A_BIN, 1, _MOST_BINS))
    edges = np.unique(np.quantile(values[defined], np.linspace(0, 1, count + 1), method="lower")[1:-1])
    place = np.searchsorted(edges, values[defined], side="left")
    return [defined[place == k] for k in range(len(edges) + 1) if np.any(place == k)]


def _bin(
    values: Float[np.ndarray, "node"],
    members: Int[np.ndarray, "member"],
    weights: Float[np.ndarray, "node"],
    nodes: NodeArrays,
    posterior: Posterior,
    measures: Sequence[NodeMeasures],
    level: float,
) -> Bin:
    own = set(members.tolist())
    questions = [row["question_id"] for row in nodes.rows]

    def mean(
        index: Sequence[int], numbers: Sequence[float], statistic: Callable[[Float[np.ndarray, "component"]], float] = ratio
    ) -> Estimate:
        sums: dict[str, np.ndarray] = {}
        for i, number in zip(index, numbers, strict=True):
            if i in own and not np.isnan(number):
                sums[questions[i]] = sums.get(questions[i], np.zeros(2)) + weights[i] * np.array([number, 1.0])
        return clustered_statistic(np.array(list(sums.values())).reshape(-1, 2), statistic, level)

    square = mean(members.tolist(), posterior.ideal_squared_norm[members].tolist())
    gains = {m.teacher: mean(m.index.tolist(), m.natural_gain[:, 0].tolist()) for m in measures}
    return Bin(float(values[members].min()), float(values[members].max()), len(members), _root(square), gains)


def _root(square: Estimate) -> Estimate:
    """The square root of an estimate and of its interval's ends, which needs no standard error of its own."""
    value, low, high = (float(np.sqrt(np.maximum(x, 0.0))) for x in (square.value, square.low, square.high))
    return Estimate(value, low, high, float("nan"), square.num_clusters, square.confidence)
