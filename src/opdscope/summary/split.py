"""How each teacher's gain differs between incorrect and correct paths, and whether more continuations could tell it better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.aggregation import Estimate, clustered_mean
from opdscope.core.alignment import gain_variance, natural_gain
from opdscope.summary.nodes import NodeArrays, node_evidence, padded, read_nodes
from opdscope.summary.weights import node_weights

HARDLY = 0.1
"""Share of a difference's variance that comes from continuations below which they are enough: without it, intervals would be 5 % narrower."""


@dataclass(frozen=True)
class Split:
    """One teacher's natural gain on incorrect minus that on correct paths, for the first objective; from questions that have both."""

    teacher: str
    """Its name."""
    difference: Estimate
    """Sum over a response, clustered by question."""
    scale: float
    """Root of a response's total signal variance, which widths are measured in."""
    noise: float
    """Part of the squared standard error that comes from continuations."""

    @property
    def width(self) -> float:
        """Of the interval, in scales; NaN with fewer than two questions or without any push."""
        return (self.difference.high - self.difference.low) / self.scale if self.scale > 0 else float("nan")

    @property
    def continuations_help(self) -> bool:
        """False where questions, paths and nodes make up nearly all of the interval's width."""
        return self.noise > HARDLY * self.difference.standard_error**2

    def noise_for(self, width: float) -> float:
        """What `noise` may be at most for an interval of this width; where only more questions could give it, where continuations are enough."""
        error, wanted = self.difference.standard_error, self.difference.standard_error * width / self.width
        others = error**2 - self.noise
        return max(wanted**2 - others, HARDLY / (1 - HARDLY) * others)


def class_weights(rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "node"]:
    """Inverse inclusion probability of each node, scaled so that the paths of each question and outcome weigh one together.

    Args:
        rows: Rows of the table `nodes`.
    """
    paths: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        paths.setdefault((row["question_id"], row["path_outcome"]), {})[row["rollout_index"]] = 1.0 / row["path_inclusion"]
    size = {key: sum(weights.values()) for key, weights in paths.items()}
    return node_weights(rows) / np.array([size[row["question_id"], row["path_outcome"]] for row in rows])


def measure_split(tables: Mapping[str, pa.Table], config: Config) -> list[Split]:
    """Of every real teacher, in the order of the configuration; empty before the first node is complete."""
    nodes = read_nodes(tables)
    if not nodes.rows:
        return []
    success = node_evidence(tables, nodes, config).success(nodes.probs, nodes.outcomes)
    index = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    found: list[Split] = []
    for teacher in (t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS):
        rows = [
            row
            for row in tables["node_signals"].to_pylist()
            if row["teacher"] == teacher and row["objective"] == config.objectives[0] and row["node_id"] in index
        ]
        own = np.array([index[row["node_id"]] for row in rows], dtype=np.int64)
        signal = padded([row["signal"] for row in rows], nodes.probs.shape[1])
        variance = np.array([row["signal_variance"] for row in rows])
        logprobs = nodes.logprobs[own]
        gain = natural_gain(logprobs, signal, success.mean[own])
        matched = None if success.correlations is None else success.correlations[own]
        noise = gain_variance(logprobs, signal, success.variance[own], matched)
        found.append(_split(teacher, nodes, own, np.stack([gain, noise, variance]), config))
    return found


def _split(teacher: str, nodes: NodeArrays, index: np.ndarray, numbers: Float[np.ndarray, "3 node"], config: Config) -> Split:
    """From each node's gain, its noise and its signal variance."""
    weight = class_weights(nodes.rows)[index]
    sums: dict[str, dict[str, np.ndarray]] = {}
    for i, w, column in zip(index, weight, numbers.T, strict=True):
        row = nodes.rows[i]
        entry = sums.setdefault(row["question_id"], {}).setdefault(row["path_outcome"], np.zeros(3))
        entry += [w * column[0], w**2 * column[1], w * column[2]]
    both = [classes for classes in sums.values() if len(classes) == 2]
    differences = np.array([classes["incorrect"][0] - classes["correct"][0] for classes in both])
    noise = sum(float(own[1]) for classes in both for own in classes.values()) / max(len(both), 1) ** 2
    scale = float(np.sqrt(np.mean([own[2] for classes in both for own in classes.values()]))) if both else float("nan")
    return Split(teacher, clustered_mean(differences, config.analysis.confidence), scale, noise)
