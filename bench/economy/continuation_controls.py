"""Teachers' log-odds along a continuation as a control variate of its outcome, on real transformers: what the second scoring pass buys."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from allocator import CHAIN
from page import Section

import opdscope
from opdscope.config import Config
from opdscope.core.controls import cross_fitted_slopes
from opdscope.records import Outcome
from opdscope.summary.foretelling import foretold_success, stratum_features
from opdscope.summary.nodes import read_nodes
from opdscope.summary.paths import list_arrays

_PER_STRATUM = 32
"""Continuations of every stratum."""


def economy(num_questions: int) -> Section:
    """Variance of outcomes within strata, and what is left of it."""
    rows: list[list[Any]] = []
    for task, length in (("chain", 48), ("addition", 64)):
        teachers = [{"name": "teacher", "teacher_model_name_or_path": f"embedded:{task}-teacher"}]
        teachers += [{"name": name, "privileged_context": name} for name in ("solution", "answer")]
        settings = {
            **CHAIN, "student": {"model_name_or_path": f"embedded:{task}-student-weak"}, "teachers": teachers,
            "task": {"kind": task, "num_questions": num_questions},
            "rollouts": {"num_rollouts": 16, "num_demonstrations": 2, "max_completion_length": length},
            "targeted": {"paths_per_outcome": 1, "nodes_per_path": 4, "min_continuations": _PER_STRATUM, "score_continuations": True},
            "target": {"kind": "tokens", "tokens": 1},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose(settings, run_dir=Path(folder) / "run")
            found = _Continuations(dict(run.tables()), run.config)
        rows += [[task, f"{name}'s log-odds", f"{len(found.deviations):,}", *found.economy([name])] for name in found.controls]
        rows.append([task, "all three", f"{len(found.deviations):,}", *found.economy(list(found.controls))])
    text = (
        f"{num_questions} questions, weak students; the nodes that the pipeline draws, {_PER_STRATUM} continuations of every stratum. The control is "
        "the sum, over the tokens that a continuation drew, of a teacher's log-ratio less its mean under the student: zero on average whatever the "
        "teacher is. Slopes are fitted on other questions. *Economy*: by how much less outcomes vary within their strata, weighted by what a stratum "
        "weighs in the strong teacher's natural gain. Scored by the pipeline (`targeted.score_continuations`), which asks all three."
    )
    return Section("Techniques: log-odds along continuations", text, ["task", "control", "continuations", "economy", "unweighted"], rows)


class _Continuations:
    """Outcomes of a run's continuations, less the mean of their stratum, and each teacher's control."""

    def __init__(self, tables: dict[str, Any], config: Config) -> None:
        nodes = read_nodes(tables)
        place = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
        weight = np.zeros(nodes.probs.shape)
        for row in tables["node_signals"].to_pylist():
            if row["teacher"] == "teacher":
                i, size = place[row["node_id"]], len(row["signal"])
                probs, signal = nodes.probs[i, :size], np.array(row["signal"])
                weight[i, :size] = (probs * (signal - np.sum(probs * signal))) ** 2
        drawn = tables["continuations"].to_pylist()
        keys = np.array([(place[row["node_id"]], row["stratum"]) for row in drawn])
        outcomes = np.array([float(row["outcome"] == Outcome.CORRECT) for row in drawn])
        self._fold = np.unique([nodes.rows[i]["question_id"] for i, _ in keys], return_inverse=True)[1]
        _, stratum = np.unique(keys, axis=0, return_inverse=True)
        self.deviations = outcomes - (np.bincount(stratum, outcomes) / np.bincount(stratum))[stratum]
        """Outcome less the stratum's mean, per continuation."""
        self._weight = weight[tuple(keys.T)]
        self.controls = {teacher.name: np.zeros(len(drawn)) for teacher in config.teachers}
        """By teacher, less the stratum's mean; zero for a question whose context is missing."""
        row_of = {(row["node_id"], row["stratum"], row["continuation_index"]): k for k, row in enumerate(drawn)}
        scores = tables["continuation_scores"]
        labels = scores.select(["node_id", "stratum", "continuation_index", "teacher"]).to_pylist()
        for row, values in zip(labels, list_arrays(scores["centred_log_ratio"]), strict=True):
            self.controls[row["teacher"]][row_of[row["node_id"], row["stratum"], row["continuation_index"]]] = values.sum(dtype=np.float64)
        for control in self.controls.values():
            control -= (np.bincount(stratum, control) / np.bincount(stratum))[stratum]
        counts = nodes.outcomes
        features = stratum_features(tables["rollouts"], nodes.rows, nodes.probs, nodes.is_tail)
        success = foretold_success(features, counts, np.unique([row["question_id"] for row in nodes.rows], return_inverse=True)[1])
        self._room = (4.0 * success * (1.0 - success))[tuple(keys.T)]

    def economy(self, names: list[str]) -> list[str]:
        """By how much less the outcomes vary, as they weigh in a gain and as they are."""
        columns = np.stack([self.controls[name] * scale for name in names for scale in (1.0, self._room)], axis=1)
        left = self.deviations - np.sum(cross_fitted_slopes(columns, self.deviations, self._fold) * columns, axis=1)
        return [f"{np.sum(w * self.deviations**2) / np.sum(w * left**2):.2f}×" for w in (self._weight, np.ones(len(left)))]
