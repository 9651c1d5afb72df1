"""Per node, teacher and objective: alignment, gains and advantage with posterior intervals, from the stored continuations."""

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
from opdscope.core.alignment import (
    advantage_variance,
    gain,
    gain_variance,
    ideal_norm_noise,
    ideal_squared_norm,
    natural_gain,
    teacher_advantage,
)
from opdscope.core.backup import backed_up_outcomes, backed_up_posterior, interval_variance
from opdscope.core.coupling import Coupling
from opdscope.core.node_prior import NodeLikelihood, NodePrior, draw_success, fit_node_prior
from opdscope.core.randomness import generator
from opdscope.core.shortest import shortest_interval
from opdscope.core.signal_prior import scaled_signal
from opdscope.core.success import StratumOutcomes, draw_priors, mean_success, success_prior
from opdscope.core.within_tail import Push, draw_cosines
from opdscope.records import TAIL, Outcome
from opdscope.summary.evidence import Evidence, read_evidence
from opdscope.summary.weights import drawn_nodes, node_weights

PATHS = ("all", "correct", "incorrect")
"""Classes of paths by their own outcome."""

_MOST_GROUPS, _NODES_A_GROUP = 4, 48
"""Groups of nodes that have a prior of their own, and the least number of nodes in one."""

_REFERENCE_NODES = 1500
"""Nodes of a run from which it is learned how far a teacher's push and success go together."""

_NODES_AT_ONCE = 512
"""Posterior draws of so many nodes are held at a time."""


@dataclass(frozen=True)
class NodeArrays:
    """All nodes of a run as padded arrays; a padded stratum has probability zero."""

    rows: list[dict[str, Any]]
    """The nodes' stored rows, in order."""
    probs: Float[np.ndarray, "node stratum"]
    """Student probability of each stratum."""
    squared_probs: Float[np.ndarray, "node stratum"]
    """Sum of squared student probabilities within each stratum."""
    is_tail: np.ndarray
    """Boolean, node × stratum."""
    outcomes: StratumOutcomes
    """Verdicts of the continuations."""

    @property
    def logprobs(self) -> Float[np.ndarray, "node stratum"]:
        """Natural-log probabilities, -inf for padding."""
        with np.errstate(divide="ignore"):
            return np.log(self.probs)

    @property
    def has_range(self) -> np.ndarray:
        """Boolean per node: two strata were seen to succeed unequally often."""
        seen = (self.outcomes.num_verified > 0) | ~np.isnan(self.outcomes.terminal)
        share = mean_success(self.probs, self.outcomes)
        low = np.min(np.where(seen, share, np.inf), axis=-1, initial=np.inf)
        high = np.max(np.where(seen, share, -np.inf), axis=-1, initial=-np.inf)
        return high > low


def read_nodes(tables: Mapping[str, pa.Table]) -> NodeArrays:
    """Nodes, strata and continuation outcomes as arrays; nodes whose continuations are not all stored yet are left out."""
    strata: dict[str, list[dict[str, Any]]] = {}
    for row in tables["strata"].to_pylist():
        strata.setdefault(row["node_id"], []).append(row)
    counts: dict[tuple[str, int], list[int]] = {}
    for row in tables["continuations"].select(["node_id", "stratum", "outcome"]).to_pylist():
        entry = counts.setdefault((row["node_id"], row["stratum"]), [0, 0, 0])
        entry[0] += row["outcome"] == Outcome.CORRECT
        entry[1] += row["outcome"] != Outcome.UNVERIFIABLE
        entry[2] += 1
    planned = planned_counts(tables)
    complete = [
        row
        for row in drawn_nodes(tables)
        if all(counts.get(key, [0, 0, 0])[2] == planned[key] for s in strata[row["node_id"]] for key in [(row["node_id"], s["stratum"])])
    ]
    width = max((len(strata[row["node_id"]]) for row in complete), default=0)
    shape = (len(complete), width)
    probs, squared, terminal = np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
    correct, verified = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    is_tail = np.zeros(shape, dtype=bool)
    for i, row in enumerate(complete):
        for stratum in strata[row["node_id"]]:
            k = stratum["stratum"]
            probs[i, k], squared[i, k], terminal[i, k] = stratum["student_prob"], stratum["squared_prob"], stratum["terminal"]
            correct[i, k], verified[i, k], _ = counts.get((row["node_id"], k), [0, 0, 0])
            is_tail[i, k] = stratum["token_id"] == TAIL
    return NodeArrays(complete, probs, squared, is_tail, StratumOutcomes(correct, verified, terminal))


def planned_counts(tables: Mapping[str, pa.Table]) -> dict[tuple[str, int], int]:
    """Continuations that each stratum is to have: what the rounds say where there are rounds, else what was planned with the node."""
    columns = ["node_id", "stratum", "forced_token_ids"]
    found = {(row["node_id"], row["stratum"]): len(row["forced_token_ids"]) for row in tables["strata"].select(columns).to_pylist()}
    rounds = tables["rounds"].to_pylist()
    if rounds:
        found = dict.fromkeys(found, 0)
        for row in rounds:
            found[row["node_id"], row["stratum"]] += row["count"]
    return found


@dataclass(frozen=True)
class NodeMeasures:
    """One (teacher, objective) at all its nodes; every array has one entry per node of `index`."""

    teacher: str
    """Whose signal."""
    objective: str
    """Which objective."""
    index: Int[np.ndarray, "node"]
    """Which of the run's nodes."""
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


@dataclass(frozen=True)
class Posterior:
    """What the outcomes say about success at every node."""

    mean: Float[np.ndarray, "node stratum"]
    """Estimated success, unbiased where sampled."""
    variance: Float[np.ndarray, "node stratum"]
    """Its variance, for intervals of what is linear in success."""
    draws: Float[np.ndarray, "draw node stratum"]
    """Posterior draws, given that strata differ at all."""
    ideal_squared_norm: Float[np.ndarray, "node"]
    """Squared length of the ideal gradient, corrected for noise; may be negative."""
    differs: Float[np.ndarray, "node"]
    """Chance that strata differ at all, without which there is no cosine."""
    told: StratumOutcomes
    """Counts of independent continuations that would tell as much of the differences between strata as everything that is known of them."""
    correlations: Float[np.ndarray, "node stratum stratum"] | None = None
    """Of what is known of a node's strata, where candidates share random numbers; None: independent."""
    coupling: Coupling | None = None
    """How outcomes go together within a node; None where continuations share no random numbers."""
    variance_left: float | None = None
    """Share of the variance of outcomes within strata that controls leave; None where outcomes have none."""


def node_posterior(tables: Mapping[str, pa.Table], nodes: NodeArrays, config: Config) -> Posterior:
    """Success of every stratum of every node, backed up along paths unless the config says otherwise.

    Nodes of `protocol: paper` lie on several paths at once, and nothing is backed up there.
    """
    return evident_posterior(nodes, node_evidence(tables, nodes, config), config)


def node_evidence(tables: Mapping[str, pa.Table], nodes: NodeArrays, config: Config) -> Evidence:
    """How the outcomes of these nodes are to be read."""
    return read_evidence(tables, nodes.rows, nodes.probs, nodes.is_tail, nodes.outcomes, config)


def evident_posterior(nodes: NodeArrays, evidence: Evidence, config: Config) -> Posterior:
    """Success of every stratum of every node as the evidence has it; each node's draws have their own seed.

    Draws are of what differs between candidates: where random numbers are shared, or outcomes have controls, they rest on as many continuations
    as would tell as much of that.
    """
    probs, num_draws = nodes.probs, config.analysis.num_draws
    links, coupling = evidence.links, evidence.coupling
    success = evidence.success(probs, nodes.outcomes)
    outcomes, arrivals = evidence.effective(nodes.outcomes)
    sources = [generator(config.seed, "posterior", row["node_id"]) for row in nodes.rows]
    count = len(nodes.rows)
    centres, strengths, differs = np.empty((num_draws, count)), np.empty((num_draws, count)), np.empty(count)
    for group in _groups(nodes):
        own = outcomes.at(group)
        drawn = draw_priors(success_prior(own), own, num_draws, [sources[i] for i in group])
        centres[:, group], strengths[:, group], differs[group] = drawn.mean, drawn.strength, drawn.differs
    draws = backed_up_posterior(probs, outcomes, arrivals, centres, strengths, sources)
    noise = ideal_norm_noise(nodes.logprobs, nodes.squared_probs, success.variance, success.correlations)
    ideal = ideal_squared_norm(nodes.logprobs, nodes.squared_probs, success.mean) - noise
    variance = interval_variance(probs, nodes.outcomes, links, coupling, evidence.sums)
    left = None if evidence.sums is None else evidence.sums.variance_left(nodes.outcomes)
    told = backed_up_outcomes(probs, outcomes, arrivals)
    return Posterior(success.mean, variance, draws, ideal, differs, told, success.correlations, coupling, left)


def _groups(nodes: NodeArrays) -> list[Int[np.ndarray, "member"]]:
    """Nodes with similar inclusion probabilities: where the design expects more to be at stake, strata differ more, and a prior for all fits none.

    Nodes without an inclusion probability are one group.
    """
    inclusion = np.array([row["inclusion"] for row in nodes.rows])
    count = 1 if np.isnan(inclusion).any() else int(np.clip(len(inclusion) // _NODES_A_GROUP, 1, _MOST_GROUPS))
    return np.array_split(np.argsort(inclusion, kind="stable"), count)


def measure_nodes(tables: Mapping[str, pa.Table], nodes: NodeArrays, posterior: Posterior, config: Config) -> list[NodeMeasures]:
    """Every teacher and objective at every node, teachers in the order in which they were stored."""
    index_of = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tables["node_signals"].to_pylist():
        if row["node_id"] in index_of:
            grouped.setdefault((row["teacher"], row["objective"]), []).append(row)

    def measure(key: tuple[str, str]) -> NodeMeasures:
        return _measure(*key, grouped[key], index_of, nodes, posterior, config)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter inside its loops
        return list(pool.map(measure, grouped))


def _measure(
    teacher: str,
    objective: str,
    rows: Sequence[dict[str, Any]],
    index_of: Mapping[str, int],
    nodes: NodeArrays,
    posterior: Posterior,
    config: Config,
) -> NodeMeasures:
    index = np.array([index_of[row["node_id"]] for row in rows])
    width = nodes.probs.shape[1]
    teacher_prob, signal, gradient = (padded([row[name] for row in rows], width) for name in ("teacher_prob", "signal", "gradient"))
    norm = np.array([row["gradient_squared_norm"] for row in rows])
    variance = np.array([row["signal_variance"] for row in rows])
    scaled, unit = scaled_signal(nodes.probs[index], signal, posterior.told.at(index))
    push = Push(nodes.probs[index], nodes.squared_probs[index], nodes.is_tail[index], signal, variance, gradient, norm)
    prior = _learned(scaled, push, posterior.told.at(index))
    parts: list[list[Float[np.ndarray, "node 3"]]] = []
    for start in range(0, len(index), _NODES_AT_ONCE):
        part = slice(start, start + _NODES_AT_ONCE)
        own = index[part]
        p, mean, noise = nodes.logprobs[own], posterior.mean[own], posterior.variance[own]
        matched = None if posterior.correlations is None else posterior.correlations[own]
        level, told, here = config.analysis.confidence, posterior.told.at(own), push.at(part)
        sources = [generator(config.seed, "cosine", teacher, objective, nodes.rows[i]["node_id"]) for i in own]
        likelihood = NodeLikelihood.of(told, scaled[part], here.num_tokens, here.probs, here.is_tail)
        draws = draw_success(prior, likelihood, told, here.num_tokens, config.analysis.num_draws, sources)
        score, correlation = draw_cosines(here, draws, unit, sources)
        parts.append(
            [
                shortest_interval(score, level),
                _normal(gain(p, gradient[part], mean), gain_variance(p, gradient[part], noise, matched), level),
                _normal(natural_gain(p, signal[part], mean), gain_variance(p, signal[part], noise, matched), level),
                shortest_interval(correlation, level),
                _normal(teacher_advantage(p, teacher_prob[part], mean), advantage_variance(p, teacher_prob[part], noise, matched), level),
            ]
        )
    score, euclidean, natural, correlation, advantage = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kl = np.array([row["reverse_kl"] for row in rows])
    tail = np.sum(np.where(nodes.is_tail[index], teacher_prob, 0.0), axis=-1)
    return NodeMeasures(teacher, objective, index, score, euclidean, natural, correlation, advantage, norm, kl, tail)


def _learned(scaled: Float[np.ndarray, "node stratum"], push: Push, outcomes: StratumOutcomes) -> NodePrior:
    """What nodes are like and how far a teacher's push goes together with success, learned from nodes spread evenly over the run."""
    picked = np.linspace(0, len(scaled) - 1, min(len(scaled), _REFERENCE_NODES)).astype(np.int64)
    tokens, probs, is_tail = (values[picked] for values in (push.num_tokens, push.probs, push.is_tail))
    return fit_node_prior(NodeLikelihood.of(outcomes.at(picked), scaled[picked], tokens, probs, is_tail))


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


def _normal(estimate: Float[np.ndarray, "node"], variance: Float[np.ndarray, "node"], confidence: float) -> Float[np.ndarray, "node 3"]:
    """A number that is linear in success with its interval, which needs no prior."""
    half = float(ndtri(0.5 + confidence / 2)) * np.sqrt(variance)
    return np.stack([estimate, estimate - half, estimate + half], axis=-1)


def central_interval(draws: Float[np.ndarray, "draw node"], confidence: float) -> Float[np.ndarray, "node 3"]:
    """Posterior mean and central interval over the draws that are defined; undefined only where no draw is.

    A draw without any success range has no direction: it says that there may be nothing to align with, not where.
    """
    count = np.sum(~np.isnan(draws), axis=0)
    ordered = np.sort(draws, axis=0)  # undefined draws come last
    columns = [np.nansum(draws, axis=0) / np.maximum(count, 1)]
    for level in (0.5 - confidence / 2, 0.5 + confidence / 2):
        place = level * np.maximum(count - 1, 0)
        below = place.astype(np.int64)
        low, high = (np.take_along_axis(ordered, np.minimum(i, len(draws) - 1)[None], axis=0)[0] for i in (below, below + 1))
        # an exact place has no draw above it, or one that is not defined
        columns.append(np.where(place > below, low + (place - below) * (high - low), low))
    return np.where(count[:, None] > 0, np.stack(columns, axis=-1), np.nan)


def padded(lists: Sequence[Sequence[float]], width: int) -> Float[np.ndarray, "node stratum"]:
    """Lists of unequal length as rows, filled up with zeros."""
    result = np.zeros((len(lists), width))
    for row, values in zip(result, lists, strict=True):
        row[: len(values)] = values
    return result
