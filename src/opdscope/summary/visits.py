"""Outcomes under the source paper's protocol, read in two ways: every visit of the response tree, and fresh continuations in two halves."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from opdscope.config import PaperConfig
from opdscope.core.trie import count_visits
from opdscope.records import Outcome, Role
from opdscope.summary.nodes import NodeArrays
from opdscope.summary.paths import list_arrays


@dataclass(frozen=True)
class TreeOutcomes:
    """What was seen at the strata of every node; the tail has no visits."""

    visits: Int[np.ndarray, "node stratum"]
    """Verified responses of the question that pass through node and token, wherever they were started."""
    success: Float[np.ndarray, "node stratum"]
    """Share of these that are correct; NaN without visits."""
    half_correct: Int[np.ndarray, "half node stratum"]
    """Correct fresh continuations among those of even and of odd index."""
    half_verified: Int[np.ndarray, "half node stratum"]
    """Verified fresh continuations of even and of odd index."""

    def half_success(self, nodes: NodeArrays) -> Float[np.ndarray, "half node stratum"]:
        """Success by the fresh continuations of each half, or as known without sampling; NaN where nothing was seen."""
        share = np.where(self.half_verified > 0, self.half_correct / np.maximum(self.half_verified, 1), np.nan)
        return np.where(np.isnan(nodes.outcomes.terminal), share, nodes.outcomes.terminal)

    def half_kept(self, nodes: NodeArrays, min_visits: int) -> Bool[np.ndarray, "node stratum"]:
        """Strata with enough fresh continuations, some in either half, or with known success."""
        enough = (np.sum(self.half_verified, axis=0) >= min_visits) & np.all(self.half_verified > 0, axis=0)
        return enough | ~np.isnan(nodes.outcomes.terminal)


def read_tree(tables: Mapping[str, pa.Table], nodes: NodeArrays, settings: PaperConfig) -> TreeOutcomes:
    """Count all responses at all nodes.

    A chosen token whose success is known without sampling, since it ends the response, has the visits that sampling would have brought it to.
    Demonstrations are no part of the tree: a teacher may have been shown them.
    """
    tokens, chosen = _stratum_tokens(tables, nodes)
    rollouts, success = _rollouts(tables)
    fresh = _Continuations(tables, nodes)
    visits, successes = np.zeros(nodes.probs.shape, dtype=np.int64), np.zeros(nodes.probs.shape)
    by_path: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(nodes.rows):
        by_path.setdefault((row["question_id"], row["rollout_index"]), []).append(i)
    responses: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
    for (question, rollout), own in by_path.items():
        if question not in responses:  # paths of a question follow one another: only one question's responses are held
            responses = {question: fresh.with_rollouts(question, rollouts, success)}
        counts = count_visits(rollouts[question][rollout], *responses[question])
        for i in own:
            width = len(tokens[i])
            visits[i, :width], successes[i, :width] = counts.children(nodes.rows[i]["position"], tokens[i])
    known = chosen & ~np.isnan(nodes.outcomes.terminal)
    share = np.where(visits > 0, successes / np.maximum(visits, 1), np.nan)
    correct, verified = fresh.halves()
    return TreeOutcomes(
        np.where(known, np.maximum(visits, settings.visits), visits), np.where(known, nodes.outcomes.terminal, share), correct, verified
    )


def _stratum_tokens(tables: Mapping[str, pa.Table], nodes: NodeArrays) -> tuple[list[list[int]], Bool[np.ndarray, "node stratum"]]:
    """Token ids of each node's strata in order, and which of them some teacher chose."""
    index_of = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    tokens: list[list[int]] = [[] for _ in nodes.rows]
    for row in tables["strata"].select(["node_id", "token_id"]).to_pylist():
        if row["node_id"] in index_of:
            tokens[index_of[row["node_id"]]].append(row["token_id"])
    chosen = np.zeros(nodes.probs.shape, dtype=bool)
    for row in tables["choices"].select(["node_id", "token_id"]).to_pylist():
        if (i := index_of.get(row["node_id"])) is not None:
            chosen[i, tokens[i].index(row["token_id"])] = True
    return tokens, chosen


def _rollouts(tables: Mapping[str, pa.Table]) -> tuple[dict[str, dict[int, np.ndarray]], dict[tuple[str, int], float]]:
    """Tokens of measured rollouts with a verdict, by question and index, and their success."""
    table = tables["rollouts"]
    tokens: dict[str, dict[int, np.ndarray]] = {}
    success: dict[tuple[str, int], float] = {}
    rows = table.select(["question_id", "rollout_index", "role", "outcome"]).to_pylist()
    for row, token_ids in zip(rows, list_arrays(table["token_ids"]), strict=True):
        if row["role"] == Role.MEASURED and row["outcome"] != Outcome.UNVERIFIABLE:
            tokens.setdefault(row["question_id"], {})[row["rollout_index"]] = token_ids
            success[row["question_id"], row["rollout_index"]] = float(row["outcome"] == Outcome.CORRECT)
    return tokens, success


class _Continuations:
    """Verified continuations of the nodes; token ids stay views of the stored columns, since there may be very many."""

    def __init__(self, tables: Mapping[str, pa.Table], nodes: NodeArrays) -> None:
        self._nodes = nodes
        table, index_of = tables["continuations"], {row["node_id"]: i for i, row in enumerate(nodes.rows)}
        columns = ["node_id", "stratum", "continuation_index", "forced_token_id", "outcome"]
        names, *numbers, outcomes = (table[name].to_pylist() for name in columns)
        node = np.array([index_of.get(name, -1) for name in names], dtype=np.int64)
        use = np.flatnonzero((node >= 0) & np.array([outcome != Outcome.UNVERIFIABLE for outcome in outcomes], dtype=bool))
        stratum, index, forced = (np.array(values, dtype=np.int64)[use] for values in numbers)
        self._node, self._stratum, self._half, self._forced = node[use], stratum, index % 2, forced
        self._correct = np.array([outcome == Outcome.CORRECT for outcome in outcomes], dtype=np.float64)[use]
        arrays = list_arrays(table["token_ids"])
        self._tokens = [arrays[i] for i in use]
        self._by_question: dict[str, list[int]] = {}
        for i, own in enumerate(self._node):
            self._by_question.setdefault(nodes.rows[own]["question_id"], []).append(i)

    def with_rollouts(
        self, question: str, rollouts: Mapping[str, Mapping[int, np.ndarray]], success: Mapping[tuple[str, int], float]
    ) -> tuple[list[np.ndarray], Float[np.ndarray, "response"]]:
        """Every verified response of a question from its first token on, and its success."""
        responses = list(rollouts[question].values())
        values = [success[question, index] for index in rollouts[question]]
        for i in self._by_question.get(question, []):
            row = self._nodes.rows[self._node[i]]
            prefix = rollouts[question][row["rollout_index"]][: row["position"]]
            responses.append(np.concatenate([prefix, self._forced[i : i + 1], self._tokens[i]]))
        return responses, np.array([*values, *self._correct[self._by_question.get(question, [])]])

    def halves(self) -> tuple[Int[np.ndarray, "half node stratum"], Int[np.ndarray, "half node stratum"]]:
        """Correct and verified continuations of even and of odd index."""
        correct, verified = np.zeros((2, 2, *self._nodes.probs.shape), dtype=np.int64)
        place = (self._half, self._node, self._stratum)
        np.add.at(correct, place, self._correct.astype(np.int64))
        np.add.at(verified, place, 1)
        return correct, verified
