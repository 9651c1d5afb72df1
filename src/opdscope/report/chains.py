"""The chain view's data: questions, their paths as tokens, and every node with its candidates. Clipped, thinned and rounded; nothing is computed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from opdscope.records import TAIL
from opdscope.report.inert import clip
from opdscope.report.tokens import TokenTexts
from opdscope.summary import Chains
from opdscope.summary.teachers import measured_rollouts, outcome_values

_SAMPLES = 3
_TOKEN_TEXT, _CONTINUATION_TEXT, _QUESTION_TEXT, _PROMPT_TEXT = 60, 240, 2_000, 3_000


def chain_view(
    tables: Mapping[str, pa.Table], chains: Chains, texts: TokenTexts, teachers: Sequence[str], objective: str, chosen: Sequence[str]
) -> dict[str, Any]:
    """Questions with their measured paths.

    Args:
        tables: Every table of the run by name.
        chains: What was measured at single places.
        texts: Token texts.
        teachers: Whose gains and pushes to show, in order.
        objective: Of these.
        chosen: Which questions.

    Returns:
        Mapping with `questions`, `num_questions` (how many have measured paths), `has_tokenizer`, `samples`, `clipped` and `teachers`. A node holds
        position, entropy and its strata; under `teachers`, by index: gain and its ends, score and its ends, q per stratum, push per stratum.
    """
    by_question = _grouped(tables["nodes"], "node_id", set(chains.strata["node_id"].to_pylist()), by="question_id")
    wanted = {row["node_id"] for question in chosen for row in by_question[question]}
    success = _success(tables, chosen)
    nodes = _Nodes(tables, chains, texts, teachers, objective, wanted)
    contexts = _grouped(tables["contexts"], "question_id", set(chosen), by="question_id")
    rollouts = {(r["question_id"], r["rollout_index"]): r for r in _rows(tables["rollouts"], set(chosen), "question_id")}
    questions: list[dict[str, Any]] = []
    for row in tables["questions"].to_pylist():
        if row["question_id"] not in chosen:
            continue
        question, own = row["question_id"], by_question[row["question_id"]]
        paths = [
            _path(rollouts[question, index], [node for node in own if node["rollout_index"] == index], nodes, texts)
            for index in dict.fromkeys(node["rollout_index"] for node in own)
        ]
        shown = [("student", row["prompt"]), *((c["teacher"], c["prompt"]) for c in contexts.get(question, []) if c["available"])]
        questions.append(
            {
                "id": question,
                "text": clip(row["text"], _QUESTION_TEXT),
                "answer": clip(row["answer"], _QUESTION_TEXT),
                "success": _short(success[question]),
                "prompts": [[name, clip(prompt, _PROMPT_TEXT)] for name, prompt in shown],
                "paths": paths,
            }
        )
    return {
        "questions": questions,
        "num_questions": len(by_question),
        "has_tokenizer": texts.has_tokenizer,
        "samples": _SAMPLES,
        "clipped": _CONTINUATION_TEXT,
        "teachers": list(teachers),
    }


def spread_questions(tables: Mapping[str, pa.Table], chains: Chains, most: int) -> list[str]:
    """At most so many questions with measured paths, spread evenly over the student's success."""
    measured = set(chains.strata["node_id"].to_pylist())
    questions = list(dict.fromkeys(row["question_id"] for row in _rows(tables["nodes"], measured, "node_id")))
    success = _success(tables, questions)
    ordered = sorted(questions, key=lambda q: (math.isnan(success[q]), success[q]))
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[i] for i in np.unique(places)]


def _success(tables: Mapping[str, pa.Table], questions: Sequence[str]) -> dict[str, float]:
    """The student's share of correct rollouts on questions, for orientation."""
    values = {question: outcome_values(rows) for question, rows in measured_rollouts(tables).items()}
    return {q: float(np.nanmean(values[q])) if np.any(~np.isnan(values[q])) else math.nan for q in questions}


def _path(rollout: Mapping[str, Any], own: Sequence[Mapping[str, Any]], nodes: "_Nodes", texts: TokenTexts) -> dict[str, Any]:
    return {
        "rollout": rollout["rollout_index"],
        "outcome": rollout["outcome"],
        "tokens": [clip(texts.one(token), _TOKEN_TEXT) for token in rollout["token_ids"]],
        "nodes": [nodes.view(node, rollout["token_ids"][node["position"]]) for node in own],
    }


class _Nodes:
    """Everything about nodes by their id."""

    def __init__(
        self, tables: Mapping[str, pa.Table], chains: Chains, texts: TokenTexts, teachers: Sequence[str], objective: str, wanted: set[str]
    ) -> None:
        self._texts = texts
        self._strata = _grouped(tables["strata"], "node_id", wanted, by="node_id")
        self._measured = {(row["node_id"], row["stratum"]): row for row in _rows(chains.strata, wanted, "node_id")}
        place = {name: i for i, name in enumerate(teachers)}
        self._scores, self._signals = (
            {
                (row["node_id"], place[row["teacher"]]): row
                for row in _rows(table, wanted, "node_id")
                if row["teacher"] in place and row["objective"] == objective
            }
            for table in (chains.scores, tables["node_signals"])
        )
        self._num_teachers = len(teachers)
        self._samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in _rows(tables["continuations"], wanted, "node_id"):
            self._samples.setdefault((row["node_id"], row["stratum"]), []).append(row)

    def view(self, node: Mapping[str, Any], taken: int) -> dict[str, Any]:
        """One node; numbers of each stratum, and of each teacher."""
        name = node["node_id"]
        strata = [self._stratum(name, row, taken) for row in self._strata[name] if (name, row["stratum"]) in self._measured]
        return {
            "position": node["position"],
            "entropy": _short(node["entropy"]),
            "ideal_squared": next((_short(self._scores[name, i]["ideal_squared_norm"]) for i in self._present(name)), None),
            "strata": strata,
            "teachers": {str(i): self._teacher(name, i) for i in self._present(name)},
        }

    def _present(self, name: str) -> list[int]:
        return [i for i in range(self._num_teachers) if (name, i) in self._scores]

    def _stratum(self, name: str, row: Mapping[str, Any], taken: int) -> dict[str, Any]:
        measured = self._measured[name, row["stratum"]]
        known = not math.isnan(row["terminal"])
        return {
            "text": clip(self._texts.one(row["token_id"]), _TOKEN_TEXT),
            "tail": row["token_id"] == TAIL,
            "taken": row["token_id"] == taken,
            "p": _short(row["student_prob"]),
            "success": _shorts(measured[key] for key in ("success", "success_low", "success_high")),
            "count": None if known else [measured["num_correct"], measured["num_verified"]],
            "ideal": _shorts(measured[key] for key in ("ideal", "ideal_low", "ideal_high")),
            "samples": [self._sample(sample) for sample in _choose(self._samples.get((name, row["stratum"]), []))],
        }

    def _sample(self, row: Mapping[str, Any]) -> list[str]:
        return [row["outcome"], clip(self._texts.joined([row["forced_token_id"], *row["token_ids"]]), _CONTINUATION_TEXT)]

    def _teacher(self, name: str, i: int) -> list[Any]:
        scores, signals = self._scores[name, i], self._signals[name, i]
        keys = [f"{quantity}{end}" for quantity in ("natural_gain", "score") for end in ("", "_low", "_high")]
        return [*_shorts(scores[key] for key in keys), _shorts(signals["teacher_prob"]), _shorts(signals["gradient"])]


def _choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first continuation of each outcome, then further ones in order."""
    firsts = list({row["outcome"]: row for row in reversed(rows)}.values())
    rest = [row for row in rows if not any(row is first for first in firsts)]
    return [*sorted(firsts, key=lambda row: row["outcome"]), *rest][:_SAMPLES]


def _grouped(table: pa.Table, column: str, wanted: set[str], by: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(table, wanted, column):
        found.setdefault(row[by], []).append(row)
    return found


def _rows(table: pa.Table, wanted: set[str], column: str) -> list[dict[str, Any]]:
    """Rows that are wanted, as mappings: of a large run most are never made into Python objects."""
    keep = [i for i, value in enumerate(table[column].to_pylist()) if value in wanted]
    return table.take(keep).to_pylist()


def _short(value: float) -> float | None:
    """Four digits; what is only rounding of a zero is zero."""
    if abs(value) < 1e-12:
        return 0.0
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _shorts(values: Iterable[float]) -> list[float | None]:
    return [_short(value) for value in values]
