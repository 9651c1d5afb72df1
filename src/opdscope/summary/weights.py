"""Weights of nodes in averages: the inverse of the probability with which each was drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float


def drawn_nodes(tables: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Rows of the table `nodes`, those of a path in order of position, with the inclusion probabilities of all draws together.

    Nodes that a later draw brought come after the others in the table, and change what the first ones stand for: see
    :mod:`opdscope.core.expansion`.
    """
    rows = tables["nodes"].to_pylist()
    changed = dict(zip(*(tables["draws"][name].to_pylist() for name in ("node_id", "inclusion")), strict=True))
    if not changed:
        return rows
    paths = {key: place for place, key in enumerate(dict.fromkeys((row["question_id"], row["rollout_index"]) for row in rows))}
    ordered = sorted(rows, key=lambda row: (paths[row["question_id"], row["rollout_index"]], row["position"]))
    return [{**row, "inclusion": changed.get(row["node_id"], row["inclusion"])} for row in ordered]


def node_weights(rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "node"]:
    """Inverse inclusion probability of each node, its path's included.

    Args:
        rows: Rows of the table `nodes`.
    """
    return np.array([1.0 / (row["path_inclusion"] * row["inclusion"]) for row in rows])


def question_weights(rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "node"]:
    """The same, scaled so that the paths of each question weigh one together: a sum over its nodes estimates the question's sum per response.

    Args:
        rows: Rows of the table `nodes`; the paths are those that have a node among them.
    """
    paths: dict[str, dict[int, float]] = {}
    for row in rows:
        paths.setdefault(row["question_id"], {})[row["rollout_index"]] = 1.0 / row["path_inclusion"]
    size = {question: sum(weights.values()) for question, weights in paths.items()}
    return node_weights(rows) / np.array([size[row["question_id"]] for row in rows])
