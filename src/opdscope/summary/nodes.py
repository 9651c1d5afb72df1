"""All nodes of a run as arrays, and what the stored continuations say about success there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from opdscope.config import Config
from opdscope.core.alignment import ideal_norm_noise, ideal_squared_norm
from opdscope.core.backup import backed_up_outcomes, backed_up_posterior, interval_variance
from opdscope.core.coupling import Coupling
from opdscope.core.randomness import generator
from opdscope.core.success import StratumOutcomes, draw_priors, mean_success, success_prior
from opdscope.records import TAIL, Outcome
from opdscope.summary.evidence import Evidence, read_evidence
from opdscope.summary.weights import drawn_nodes

PATHS = ("all", "correct", "incorrect")
"""Classes of paths by their own outcome."""

_MOST_GROUPS, _NODES_A_GROUP = 4, 48
"""Groups of nodes that have a prior of their own, and the least number of nodes in one."""


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
