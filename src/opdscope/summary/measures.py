"""Per node, teacher and objective: alignment, gains and advantage with posterior intervals, from what is known of success."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from scipy.special import ndtri

from opdscope.config import Config
from opdscope.core.alignment import advantage_variance, gain, gain_variance, natural_gain, teacher_advantage
from opdscope.core.node_prior import NodeLikelihood, NodeOutcomes, NodePrior, draw_success, fit_node_prior
from opdscope.core.randomness import generator
from opdscope.core.shortest import shortest_interval
from opdscope.core.signal_prior import scaled_signal
from opdscope.core.stratum_tables import stratum_tokens
from opdscope.core.within_tail import Push, draw_cosines
from opdscope.summary.nodes import NodeArrays, Posterior, node_posterior, padded, read_nodes
from opdscope.summary.weights import node_weights

_REFERENCE_NODES = 1500
"""Nodes of a run from which it is learned how far a teacher's push and success go together."""

_NODES_AT_ONCE = 512
"""Posterior draws of so many nodes are held at a time by a thread."""


_Numbers = list[Float[np.ndarray, "node 3"]]
"""Score, gain, natural gain, natural alignment and advantage, each with its interval."""


@dataclass(frozen=True)
class NodeMeasures:
    """One (teacher, objective) at all its nodes; every array has one entry per node of `index`."""

    teacher: str
    """Whose signal."""
    objective: str
    """Which objective."""
    index: Int[np.ndarray, "node"]
    """Which of the run's nodes, ascending."""
    score: Float[np.ndarray, "node 3"]
    """Alignment score where success has a range: posterior mean, lower and upper end. NaN where there is no push."""
    gain: Float[np.ndarray, "node 3"]
    """Euclidean gain: unbiased estimate, lower and upper end."""
    natural_gain: Float[np.ndarray, "node 3"]
    """Natural gain: unbiased estimate, lower and upper end."""
    natural_alignment: Float[np.ndarray, "node 3"]
    """Natural alignment where success has a range: posterior mean, lower and upper end."""
    advantage: Float[np.ndarray, "node 3"]
    """Teacher advantage: unbiased estimate, lower and upper end."""
    gradient_squared_norm: Float[np.ndarray, "node"]
    """Squared length of the push on the logits."""
    reverse_kl: Float[np.ndarray, "node"]
    """KL(student ‖ teacher) in nats."""
    tail_prob: Float[np.ndarray, "node"]
    """The teacher's probability outside the measured candidates."""


def measure_nodes(tables: Mapping[str, pa.Table], nodes: NodeArrays, posterior: Posterior, config: Config) -> list[NodeMeasures]:
    """Every teacher and objective at every node, teachers in the order in which they were stored."""
    index_of = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tables["node_signals"].to_pylist():
        if row["node_id"] in index_of:
            grouped.setdefault((row["teacher"], row["objective"]), []).append(row)

    seen = [_Seen.of(*key, rows, index_of, nodes, posterior) for key, rows in grouped.items()]
    count = len(nodes.rows)
    picked = _spread(count)
    tokens = stratum_tokens(nodes.probs, nodes.squared_probs, nodes.is_tail)

    def told(members: Int[np.ndarray, "node"]) -> NodeOutcomes:
        return NodeOutcomes.of(posterior.told.at(members), tokens[members], nodes.probs[members], nodes.is_tail[members])

    reference = told(picked)

    def learn(own: _Seen) -> NodePrior:
        """What nodes are like and how far a teacher's push goes together with success, learned from nodes spread evenly over its own."""
        if len(own.index) == count:
            return fit_node_prior(NodeLikelihood.of(reference, own.scaled[picked]))
        places = _spread(len(own.index))
        return fit_node_prior(NodeLikelihood.of(told(own.index[places]), own.scaled[places]))

    def measure(members: Int[np.ndarray, "node"]) -> list[_Numbers]:
        """All teachers at a few nodes, whose outcomes are tabulated once for all of them."""
        here = told(members)
        found: list[_Numbers] = []
        for own, prior in zip(seen, priors, strict=True):
            mine = np.flatnonzero(np.isin(members, own.index))
            found.append(_measure(own, prior, own.places(members[mine]), here.at(mine), nodes, posterior, config))
        return found

    threads = os.cpu_count() or 1
    size = min(_NODES_AT_ONCE, max(-(-count // threads), 1))
    batches = np.split(np.arange(count), range(size, count, size))
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter inside its loops
        priors = list(pool.map(learn, seen))
        measured = list(pool.map(measure, batches))
    return [own.measures([batch[k] for batch in measured], nodes) for k, own in enumerate(seen)]


def node_scores(tables: Mapping[str, pa.Table], config: Config) -> pa.Table:
    """One row per node, teacher and objective, with every quantity of METHOD section 4 and its interval.

    Columns `score`, `gain`, `natural_gain`, `natural_alignment` and `advantage` have companions `…_low` and `…_high` at the configured
    confidence. `ideal_squared_norm` is corrected for noise and may be negative. NaN is undefined; so is `weight` under `protocol: paper`,
    whose nodes have no inclusion probability.
    """
    nodes = read_nodes(tables)
    if not nodes.rows:
        return pa.table({})
    posterior = node_posterior(tables, nodes, config)
    return score_table(nodes, posterior, measure_nodes(tables, nodes, posterior, config))


def score_table(nodes: NodeArrays, posterior: Posterior, measures: Sequence[NodeMeasures]) -> pa.Table:
    """The rows of :func:`node_scores` from what was measured already."""
    chunks: list[pa.Table] = []
    for m in measures:
        rows = [nodes.rows[i] for i in m.index]
        columns: dict[str, Any] = {
            name: [row[name] for row in rows] for name in ("node_id", "question_id", "rollout_index", "position", "path_outcome")
        }
        columns |= {"teacher": [m.teacher] * len(rows), "objective": [m.objective] * len(rows)}
        columns["weight"] = node_weights(rows)
        for name in ("score", "gain", "natural_gain", "natural_alignment", "advantage"):
            values = getattr(m, name)
            columns |= {name: values[:, 0], f"{name}_low": values[:, 1], f"{name}_high": values[:, 2]}
        columns |= {"ideal_squared_norm": posterior.ideal_squared_norm[m.index], "gradient_squared_norm": m.gradient_squared_norm}
        columns["reverse_kl"] = m.reverse_kl
        chunks.append(pa.table(columns))
    return pa.concat_tables(chunks)


@dataclass(frozen=True)
class _Seen:
    """The nodes of a run as one teacher under one objective sees them, in the order of the run."""

    teacher: str
    objective: str
    index: Int[np.ndarray, "node"]
    teacher_prob: Float[np.ndarray, "node stratum"]
    push: Push
    scaled: Float[np.ndarray, "node stratum"]
    """Its signal in its unit."""
    unit: float
    reverse_kl: Float[np.ndarray, "node"]

    @staticmethod
    def of(
        teacher: str, objective: str, rows: Sequence[dict[str, Any]], index_of: Mapping[str, int], nodes: NodeArrays, posterior: Posterior
    ) -> "_Seen":
        rows = sorted(rows, key=lambda row: index_of[row["node_id"]])
        index = np.array([index_of[row["node_id"]] for row in rows])
        width = nodes.probs.shape[1]
        teacher_prob, signal, gradient = (padded([row[name] for row in rows], width) for name in ("teacher_prob", "signal", "gradient"))
        variance, norm, kl = (np.array([row[name] for row in rows]) for name in ("signal_variance", "gradient_squared_norm", "reverse_kl"))
        push = Push(nodes.probs[index], nodes.squared_probs[index], nodes.is_tail[index], signal, variance, gradient, norm)
        return _Seen(teacher, objective, index, teacher_prob, push, *scaled_signal(push.probs, signal, posterior.told.at(index)), kl)

    def places(self, members: Int[np.ndarray, "node"]) -> Int[np.ndarray, "node"]:
        """Where these nodes of the run lie in this teacher's arrays."""
        return np.searchsorted(self.index, members)

    def measures(self, parts: Sequence[_Numbers], nodes: NodeArrays) -> NodeMeasures:
        score, euclidean, natural, correlation, advantage = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        tail = np.sum(np.where(nodes.is_tail[self.index], self.teacher_prob, 0.0), axis=-1)
        numbers = score, euclidean, natural, correlation, advantage
        return NodeMeasures(self.teacher, self.objective, self.index, *numbers, self.push.gradient_squared_norm, self.reverse_kl, tail)


def _measure(
    seen: _Seen,
    prior: NodePrior,
    part: Int[np.ndarray, "node"],
    told: NodeOutcomes,
    nodes: NodeArrays,
    posterior: Posterior,
    config: Config,
) -> _Numbers:
    own, here, level = seen.index[part], seen.push.at(part), config.analysis.confidence
    p, mean, noise = nodes.logprobs[own], posterior.mean[own], posterior.variance[own]
    matched = None if posterior.correlations is None else posterior.correlations[own]
    sources = [generator(config.seed, "cosine", seen.teacher, seen.objective, nodes.rows[i]["node_id"]) for i in own]
    likelihood = NodeLikelihood.of(told, seen.scaled[part])
    draws = draw_success(prior, likelihood, posterior.told.at(own), here.num_tokens, config.analysis.num_draws, sources)
    score, correlation = draw_cosines(here, draws, seen.unit, sources)
    q = seen.teacher_prob[part]
    return [
        shortest_interval(score, level),
        _normal(gain(p, here.gradient, mean), gain_variance(p, here.gradient, noise, matched), level),
        _normal(natural_gain(p, here.signal, mean), gain_variance(p, here.signal, noise, matched), level),
        shortest_interval(correlation, level),
        _normal(teacher_advantage(p, q, mean), advantage_variance(p, q, noise, matched), level),
    ]


def _spread(count: int) -> Int[np.ndarray, "node"]:
    """Places of the nodes to learn from, among so many."""
    return np.linspace(0, count - 1, min(count, _REFERENCE_NODES)).astype(np.int64)


def _normal(estimate: Float[np.ndarray, "node"], variance: Float[np.ndarray, "node"], confidence: float) -> Float[np.ndarray, "node 3"]:
    """A number that is linear in success with its interval, which needs no prior."""
    half = float(ndtri(0.5 + confidence / 2)) * np.sqrt(variance)
    return np.stack([estimate, estimate - half, estimate + half], axis=-1)
