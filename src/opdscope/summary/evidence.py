"""What continuations say beyond counts of verdicts: how nodes follow one another, which random numbers are shared, and the controls of outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.backup import BackedUpSuccess, PathLinks, back_up, no_links
from opdscope.core.controlled import Controlled, ControlledContinuations, OutcomeSums, control_outcomes
from opdscope.core.coupling import Coupling
from opdscope.core.success import StratumOutcomes
from opdscope.records import Outcome
from opdscope.summary.foretelling import foretold_success, stratum_features
from opdscope.summary.paths import list_arrays, path_steps, read_links
from opdscope.summary.shared_numbers import read_coupling

_FOLDS = 10
"""Parts of the questions that what is learned leaves out in turn."""


@dataclass(frozen=True)
class Evidence:
    """How outcomes of continuations are to be read."""

    links: PathLinks
    """Which strata lead on to other nodes."""
    coupling: Coupling | None = None
    """How outcomes go together within a node; None where continuations share no random numbers."""
    sums: OutcomeSums | None = None
    """Of outcomes less their controls; None where continuations are not scored."""

    def success(self, probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes) -> BackedUpSuccess:
        """Success of every stratum."""
        return back_up(probs, outcomes, self.links, self.coupling, self.sums)

    def effective(self, outcomes: StratumOutcomes) -> tuple[StratumOutcomes, PathLinks]:
        """Counts of plain, independent continuations that would tell as much of what differs between candidates."""
        links = self.links
        if self.sums is not None:
            outcomes, links = _controlled_counts(self.sums, outcomes, links)
        if self.coupling is not None:
            outcomes, contrast = self.coupling.effective(outcomes), self.coupling.contrast
            links = replace(links, num_staying=links.num_staying / contrast, num_staying_correct=links.num_staying_correct / contrast)
        return outcomes, links


def _controlled_counts(sums: OutcomeSums, outcomes: StratumOutcomes, links: PathLinks) -> tuple[StratumOutcomes, PathLinks]:
    """On which a posterior of counts rests: of the path's token those that arrive and those that leave, each with its own control."""
    found = sums.effective(outcomes)
    own = np.flatnonzero(links.next_node >= 0)
    through = np.arange(len(links.stratum)), links.stratum
    staying = sums.effective_staying(links.num_staying_correct, links.num_staying)
    left_correct, left = (
        counts[through] - arrived
        for counts, arrived in ((outcomes.num_correct, links.num_staying_correct), (outcomes.num_verified, links.num_staying))
    )
    leaving = sums.effective_leaving(left_correct, left)
    correct = found.num_correct.copy()
    correct[own, links.stratum[own]] = (staying + leaving)[own]
    arrivals = replace(links, num_staying=links.num_staying / sums.kept, num_staying_correct=staying)
    return StratumOutcomes(correct, found.num_verified, found.terminal), arrivals


def read_evidence(
    tables: Mapping[str, pa.Table],
    rows: Sequence[Mapping[str, Any]],
    probs: Float[np.ndarray, "node stratum"],
    is_tail: np.ndarray,
    outcomes: StratumOutcomes,
    config: Config,
) -> Evidence:
    """Of these nodes, backed up along paths unless the configuration says otherwise.

    Nodes of `protocol: paper` lie on several paths at once: nothing is backed up there, and their outcomes have no controls.

    Args:
        tables: Every table of the run by name.
        rows: Rows of the nodes, those of a path in order of position.
        probs: Student probability of each of their strata.
        is_tail: Boolean, node × stratum.
        outcomes: Verdicts of their continuations.
        config: The run's configuration.
    """
    default = config.protocol == "default"
    links = read_links(tables, rows) if config.analysis.back_up and default else no_links(len(rows))
    if not _has_controls(tables, config):
        return Evidence(links, read_coupling(tables, config))
    fold = question_folds(rows)
    success = foretold_success(stratum_features(tables["rollouts"], rows, probs, is_tail), outcomes, fold)
    continuations, own = _read_continuations(tables, rows, links, config)
    found = control_outcomes(continuations, success, fold)
    values, kept = np.full(len(own), np.nan), np.ones(len(own))
    values[own], kept[own] = found.outcomes, found.kept
    return Evidence(links, read_coupling(tables, config, Controlled(found.sums, values, kept)), found.sums)


def read_foretold_kept(
    tables: Mapping[str, pa.Table],
    rows: Sequence[Mapping[str, Any]],
    probs: Float[np.ndarray, "node stratum"],
    is_tail: np.ndarray,
    first: Int[np.ndarray, "node stratum"],
    config: Config,
) -> Float[np.ndarray, "node"]:
    """Share of an outcome's variance that controls are foretold to leave at each node, by the first continuations of other questions alone.

    Args:
        tables: Every table of the run by name.
        rows: Rows of the nodes.
        probs: Student probability of each of their strata.
        is_tail: Boolean, node × stratum.
        first: How many of each stratum's continuations may be looked at.
        config: The run's configuration.

    Returns:
        In (0, 1]; 1 where continuations are not scored.
    """
    if not _has_controls(tables, config):
        return np.ones(len(rows))
    continuations, own = _read_continuations(tables, rows, no_links(len(rows)), config)
    index = tables["continuations"]["continuation_index"].to_numpy()[own]
    known = continuations.at(index < first[continuations.node, continuations.stratum])
    features, fold = stratum_features(tables["rollouts"], rows, probs, is_tail), question_folds(rows)
    found = np.ones(len(rows))
    for part in np.unique(fold):
        # slopes and success are learned anew without these questions: what holds for the others must not have looked at them either
        others = known.at(fold[known.node] != part)
        success = foretold_success(features, others.counts(probs.shape), fold)
        # a node of which nothing is known has the share of all together
        found[fold == part] = control_outcomes(others, success, fold).sums.kept[fold == part]
    return found


def question_folds(rows: Sequence[Mapping[str, Any]]) -> Int[np.ndarray, "node"]:
    """Part of the questions, of ten, that each node belongs to: what is learned for it is learned from the other parts."""
    questions = {question_id: k for k, question_id in enumerate(dict.fromkeys(row["question_id"] for row in rows))}
    return np.array([questions[row["question_id"]] % _FOLDS for row in rows], dtype=np.int64)


def _has_controls(tables: Mapping[str, pa.Table], config: Config) -> bool:
    return config.protocol == "default" and config.targeted.score_continuations and tables["continuation_scores"].num_rows > 0


def _read_continuations(
    tables: Mapping[str, pa.Table], rows: Sequence[Mapping[str, Any]], links: PathLinks, config: Config
) -> tuple[ControlledContinuations, Bool[np.ndarray, "continuation"]]:
    """The stored continuations of these nodes with their controls, and which of all that are stored they are.

    A continuation that is not scored yet, or not by a teacher, has a control of zero: which are scored depends on no outcome.
    """
    teachers = [teacher.name for teacher in config.teachers if teacher.privileged_context not in NULL_CONTEXTS]
    index_of = {row["node_id"]: i for i, row in enumerate(rows)}
    steps, table = path_steps(tables, rows), tables["continuations"]
    labels = [table[name].to_pylist() for name in ("node_id", "stratum", "continuation_index")]
    place = {key: k for k, key in enumerate(zip(*labels, strict=True))}
    count = table.num_rows
    node = np.array([index_of.get(node_id, -1) for node_id in labels[0]], dtype=np.int64)
    stratum = np.array(labels[1], dtype=np.int64)
    linked = (node >= 0) & (links.next_node[node] >= 0) & (links.stratum[node] == stratum)
    on_path = np.zeros(count, dtype=np.int64)  # tokens that repeat the path, of those up to the next node
    tokens = list_arrays(table["token_ids"])
    for k in np.flatnonzero(linked):
        on_path[k] = _agreeing(tokens[k], steps[node[k]][1:])
    stays = linked & (on_path == np.array([len(steps[i]) - 1 for i in node]))
    control, before, after = np.zeros((3, count, len(teachers)))
    scores = tables["continuation_scores"]
    keys = zip(*(scores[name].to_pylist() for name in ("node_id", "stratum", "continuation_index")), strict=True)
    for key, teacher, values in zip(keys, scores["teacher"].to_pylist(), list_arrays(scores["centred_log_ratio"]), strict=True):
        if teacher in teachers:
            k, t = place[key], teachers.index(teacher)
            control[k, t] = np.sum(values, dtype=np.float64)
            before[k, t] = np.sum(values[: on_path[k]], dtype=np.float64) if stays[k] else control[k, t]
            rest = values[on_path[k] + (not stays[k]) :] if linked[k] else values
            after[k, t] = np.sum(rest, dtype=np.float64)
    verdicts = table["outcome"].to_pylist()
    outcome = np.array([np.nan if verdict == Outcome.UNVERIFIABLE else float(verdict == Outcome.CORRECT) for verdict in verdicts])
    own = node >= 0
    return ControlledContinuations(node, stratum, outcome, linked, stays, control, before, after).at(own), own


def _agreeing(tokens: np.ndarray, path: tuple[int, ...]) -> int:
    """How many of the first tokens are those of the path."""
    size = min(len(tokens), len(path))
    differ = np.flatnonzero(tokens[:size] != np.array(path[:size], dtype=tokens.dtype))
    return int(differ[0]) if len(differ) else size
