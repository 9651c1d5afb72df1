"""How wide the intervals of single nodes are, in what a map is asked for."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.special import ndtri

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.alignment import gain_variance
from opdscope.core.backup import interval_variance
from opdscope.summary.nodes import node_evidence, padded, read_nodes


def node_widths(tables: Mapping[str, pa.Table], config: Config) -> Float[np.ndarray, "teacher node"]:
    """Width of the interval of each real teacher's natural gain at each node, divided by the standard deviation of its signal there.

    For the first objective, at `analysis.confidence`; NaN where a teacher does not push. Nodes whose continuations are not all stored are left out.
    """
    nodes = read_nodes(tables)
    names = [teacher.name for teacher in config.teachers if teacher.privileged_context not in NULL_CONTEXTS]
    found = np.full((len(names), len(nodes.rows)), np.nan)
    if not nodes.rows:
        return found
    evidence = node_evidence(tables, nodes, config)
    matched = evidence.success(nodes.probs, nodes.outcomes).correlations
    noise = interval_variance(nodes.probs, nodes.outcomes, evidence.links, evidence.coupling, evidence.sums)
    index = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    for t, name in enumerate(names):
        rows = [
            row
            for row in tables["node_signals"].to_pylist()
            if row["teacher"] == name
            and row["objective"] == config.objectives[0]
            and row["node_id"] in index
            and row["signal_variance"] > 0
        ]
        own = np.array([index[row["node_id"]] for row in rows], dtype=np.int64)
        signal = padded([row["signal"] for row in rows], nodes.probs.shape[1])
        variance = gain_variance(nodes.logprobs[own], signal, noise[own], None if matched is None else matched[own])
        spread = np.array([row["signal_variance"] for row in rows])
        found[t, own] = 2.0 * float(ndtri(0.5 + config.analysis.confidence / 2)) * np.sqrt(variance / spread)
    return found
