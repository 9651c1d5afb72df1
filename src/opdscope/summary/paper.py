"""The source paper's numbers from a run of its protocol, and beside each what the same run says soundly.

Sound means here: free of the protocol's biases in counting, in selection and in the treatment of noise. It does not mean representative. The
nodes were chosen for the size of a teacher's push and have no inclusion probability, so these numbers are about those nodes, each counted once.
The natural gain from ordinary rollouts is the exception: it is about whole responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from opdscope.config import Config, PaperConfig
from opdscope.core.aggregation import Estimate, bounded_estimate, clustered_mean, pooled_cosine
from opdscope.core.paper import KeptChildren, filter_positive, kept_children, question_means
from opdscope.summary.measures import NodeMeasures, measure_nodes
from opdscope.summary.nodes import PATHS, NodeArrays, Posterior, node_posterior, padded, read_nodes
from opdscope.summary.visits import TreeOutcomes, read_tree

_OBJECTIVE = "reverse_kl"
"""The paper's."""


@dataclass(frozen=True)
class PaperNumbers:
    """What the paper's procedure gives; averages run over nodes of a path, paths of a question, questions. Intervals by question are ours."""

    mean_cosine: Estimate
    """Mean cosine on the kept children."""
    weighted_mean_cosine: Estimate
    """The same with nodes weighted by their success range within a path."""
    share_positive: float
    """Share of nodes with a positive cosine, all nodes alike."""
    advantage: Estimate
    """Mean teacher advantage, both distributions renormalised over the kept children."""
    oracle_filter: Estimate
    """Mean cosine over the nodes that were selected for a positive cosine on the same visits."""
    oracle_ratio: float
    """That, over the unfiltered mean; NaN where the latter is not positive."""
    share_two_children: float
    """Share of scored nodes with exactly two kept children, whose cosine is ±1."""
    num_nodes: int
    """Nodes that the teacher chose; one that several paths share counts on each."""
    num_scored: int
    """Of these, nodes with a cosine."""


@dataclass(frozen=True)
class SoundNumbers:
    """What fresh continuations say at those of the nodes where they reach two strata or more."""

    pooled_alignment: Estimate
    """Pooled cosine over the full vocabulary with noise-corrected norm."""
    mean_score: Estimate
    """Mean posterior cosine over the full vocabulary, averaged in the paper's order; its interval is a bound, from the nodes' own intervals."""
    advantage: Estimate
    """Mean teacher advantage over the full vocabulary, averaged in the paper's order."""
    honest_filter: Estimate
    """Mean cosine on the kept children by one half of the continuations, at nodes selected for a positive one by the other half; both ways."""
    num_nodes: int
    """Nodes that it rests on."""


@dataclass(frozen=True)
class _Members:
    """The nodes of one teacher and class of paths; a node that two paths share appears on both."""

    node: Int[np.ndarray, "member"]
    path: Int[np.ndarray, "member"]
    question: Int[np.ndarray, "path"]
    num_questions: int
    confidence: float

    def where(self, mask: Bool[np.ndarray, "member"]) -> "_Members":
        return _Members(self.node[mask], self.path[mask], self.question, self.num_questions, self.confidence)

    def question_means(self, values: Float[np.ndarray, "node"], weights: Float[np.ndarray, "node"] | None = None) -> np.ndarray:
        own = None if weights is None else weights[self.node]
        return question_means(values[self.node], self.path, self.question, self.num_questions, own)

    def mean(self, values: Float[np.ndarray, "node"], weights: Float[np.ndarray, "node"] | None = None) -> Estimate:
        return clustered_mean(self.question_means(values, weights), self.confidence)


def summarize_paper(
    tables: Mapping[str, pa.Table], config: Config, settings: PaperConfig, teachers: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The section `paper` of the summary; None while no node has all its continuations.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
        settings: The protocol's settings; those that are no part of the run's identity may be changed.
        teachers: The summary's teachers, whose natural gain is repeated here. Null teachers choose nothing and are measured at every node.
    """
    nodes = read_nodes(tables)
    if not nodes.rows:
        return None
    tree, posterior = read_tree(tables, nodes, settings), node_posterior(tables, nodes, config)
    signals = tables["node_signals"].filter(pc.field("objective") == _OBJECTIVE)
    measures = {m.teacher: m for m in measure_nodes({"node_signals": signals}, nodes, posterior, config)}
    probs = _teacher_probs(signals, nodes)
    measured, unreached = _measured(nodes), np.sum(np.where(_reached(nodes), 0.0, nodes.probs), axis=-1)
    members = _Choices(tables, nodes, config.analysis.confidence)
    found: list[dict[str, Any]] = []
    for teacher in teachers:
        if (own := measures.get(teacher["name"])) is not None:
            view = _TeacherView(own, probs[own.teacher], nodes, tree, posterior, settings)
            paths = {name: members.of(own, name) for name in PATHS}
            numbers = {name: {"paper": view.paper(each), "sound": view.sound(each)} for name, each in paths.items()}
            gain = teacher["objectives"][_OBJECTIVE]["natural_gain"]
            found.append({"name": teacher["name"], "is_null": teacher["is_null"], "natural_gain": gain, "paths": numbers})
    return {
        "settings": settings.model_dump(mode="json"),
        "num_nodes": len(nodes.rows),
        "num_measured_nodes": int(np.sum(measured)),
        "student_mass_not_reached": float(np.mean(unreached[measured])) if measured.any() else None,
        "teachers": found,
    }


class _TeacherView:
    """One teacher's numbers at every node of the run, NaN at those where it has none."""

    def __init__(
        self,
        measures: NodeMeasures,
        teacher_probs: Float[np.ndarray, "node stratum"],
        nodes: NodeArrays,
        tree: TreeOutcomes,
        posterior: Posterior,
        settings: PaperConfig,
    ) -> None:
        def children(success: Float[np.ndarray, "node stratum"], kept: Bool[np.ndarray, "node stratum"]) -> KeptChildren:
            return kept_children(nodes.probs, teacher_probs, success, kept & ~nodes.is_tail, settings.min_children)

        self._kept = children(tree.success, tree.visits >= settings.min_visits)
        fresh = tree.half_kept(nodes, settings.min_visits)
        self._halves = [children(success, fresh).cosine for success in tree.half_success(nodes)]
        columns = (*measures.score.T, measures.advantage[:, 0], measures.gain[:, 0], measures.gradient_squared_norm)
        sound = np.full((len(columns), len(nodes.rows)), np.nan)
        sound[:, measures.index] = np.array(columns)
        sound[:, ~_measured(nodes)] = np.nan
        *self._score, self._advantage, self._gain, self._norm = sound
        self._ideal = posterior.ideal_squared_norm

    def paper(self, members: _Members) -> PaperNumbers:
        cosine = self._kept.cosine[members.node]
        scored = ~np.isnan(cosine)
        mean = members.mean(self._kept.cosine)
        oracle = members.mean(filter_positive(self._kept.cosine, self._kept.cosine))
        num_scored = int(scored.sum())
        two = self._kept.num_children[members.node] == 2
        return PaperNumbers(
            mean_cosine=mean,
            weighted_mean_cosine=members.mean(self._kept.cosine, self._kept.success_range),
            share_positive=float(np.mean(cosine[scored] > 0)) if num_scored else np.nan,
            # the paper scores a node only if it has a success range
            advantage=members.mean(np.where(np.isnan(self._kept.cosine), np.nan, self._kept.advantage)),
            oracle_filter=oracle,
            oracle_ratio=oracle.value / mean.value if mean.value > 0 else np.nan,
            share_two_children=float(np.mean(two[scored])) if num_scored else np.nan,
            num_nodes=len(members.node),
            num_scored=num_scored,
        )

    def sound(self, members: _Members) -> SoundNumbers:
        own = members.where(~np.isnan(self._gain[members.node]))
        columns = np.stack([self._gain, self._ideal, self._norm], axis=-1)[own.node]
        question = own.question[own.path]
        sums = [np.sum(columns[question == q], axis=0) for q in np.unique(question)]
        pooled = pooled_cosine(np.array(sums).reshape(-1, 3), members.confidence)
        first, second = self._halves
        ways = [own.question_means(filter_positive(a, b)) for a, b in ((first, second), (second, first))]
        return SoundNumbers(
            pooled_alignment=pooled,
            mean_score=bounded_estimate(*(own.mean(values) for values in self._score)),
            advantage=own.mean(self._advantage),
            honest_filter=clustered_mean(_mean_of_defined(*ways), members.confidence),
            num_nodes=len(own.node),
        )


class _Choices:
    """Which nodes each teacher chose on which paths."""

    def __init__(self, tables: Mapping[str, pa.Table], nodes: NodeArrays, confidence: float) -> None:
        index_of = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
        rows = [row for row in tables["choices"].to_pylist() if row["node_id"] in index_of]
        questions = list(dict.fromkeys(row["question_id"] for row in nodes.rows))
        paths = list(dict.fromkeys((row["question_id"], row["rollout_index"], row["path_outcome"]) for row in rows))
        self._outcomes = np.array([outcome for _, _, outcome in paths])
        self._question = np.array([questions.index(question) for question, _, _ in paths], dtype=np.int64)
        self._num_questions, self._confidence = len(questions), confidence
        path_of = {(question, rollout): i for i, (question, rollout, _) in enumerate(paths)}
        # a dictionary keeps the order, so that sums do not depend on hashing
        self._by_teacher: dict[str, dict[tuple[int, int], None]] = {}
        for row in rows:
            place = (index_of[row["node_id"]], path_of[row["question_id"], row["rollout_index"]])
            self._by_teacher.setdefault(row["teacher"], {})[place] = None

    def of(self, measures: NodeMeasures, paths: str) -> _Members:
        """The nodes of a teacher on a class of paths; of one that chooses nothing, all at which it was scored."""
        chosen = self._by_teacher.get(measures.teacher)
        if chosen is None:
            chosen = dict.fromkeys(place for own in self._by_teacher.values() for place in own)
        scored = set(measures.index.tolist())
        places = np.array([place for place in chosen if place[0] in scored], dtype=np.int64).reshape(-1, 2)
        inside = np.array([paths in ("all", self._outcomes[path]) for path in places[:, 1]], dtype=bool)
        node, path = places[inside].T
        return _Members(node, path, self._question, self._num_questions, self._confidence)


def _teacher_probs(signals: pa.Table, nodes: NodeArrays) -> dict[str, Float[np.ndarray, "node stratum"]]:
    """Each teacher's probability of every stratum; zero at nodes where it was not scored."""
    by_teacher: dict[str, dict[str, list[float]]] = {}
    for row in signals.select(["node_id", "teacher", "teacher_prob"]).to_pylist():
        by_teacher.setdefault(row["teacher"], {})[row["node_id"]] = row["teacher_prob"]
    width = nodes.probs.shape[1]
    return {teacher: padded([own.get(row["node_id"], []) for row in nodes.rows], width) for teacher, own in by_teacher.items()}


def _measured(nodes: NodeArrays) -> Bool[np.ndarray, "node"]:
    """Nodes at which two strata or more have fresh continuations or known success: with one there is nothing to compare."""
    return np.sum(_reached(nodes), axis=-1) >= 2


def _reached(nodes: NodeArrays) -> Bool[np.ndarray, "node stratum"]:
    return (nodes.outcomes.num_verified > 0) | ~np.isnan(nodes.outcomes.terminal)


def _mean_of_defined(first: Float[np.ndarray, "question"], second: Float[np.ndarray, "question"]) -> Float[np.ndarray, "question"]:
    return np.where(np.isnan(first), second, np.where(np.isnan(second), first, (first + second) / 2))
