"""Teachers' log-odds along a continuation as a control variate of its outcome, on real transformers: what a second scoring pass would buy."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from allocator import CHAIN
from page import Section

import opdscope
from opdscope.core.controls import cross_fitted_slopes
from opdscope.models.base import Model, ScoreRequest
from opdscope.pipeline.experiment import load_models
from opdscope.records import Outcome
from opdscope.summary.nodes import read_nodes

_PER_STRATUM, _MOST = 32, 8.0
"""Continuations of every stratum; log-ratios are cut at so many nats: a clipped signal is centred like any other."""


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
            "targeted": {"paths_per_outcome": 1, "nodes_per_path": 4, "min_continuations": _PER_STRATUM},
            "target": {"kind": "tokens", "tokens": 1},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose(settings, run_dir=Path(folder) / "run")
            found = _Continuations(dict(run.tables()), *load_models(run.config))
        rows += [[task, f"{name}'s log-odds", f"{len(found.deviations):,}", *found.economy([name])] for name in found.controls]
        rows.append([task, "all three", f"{len(found.deviations):,}", *found.economy(list(found.controls))])
    text = (
        f"{num_questions} questions, weak students; the nodes that the pipeline draws, {_PER_STRATUM} continuations of every stratum. The control is "
        "the sum, over the tokens that a continuation drew, of a teacher's log-ratio less its mean under the student: zero on average whatever the "
        "teacher is. Slopes are fitted on other questions. *Economy*: by how much less outcomes vary within their strata, weighted by what a stratum "
        "weighs in the strong teacher's natural gain. Every continuation would have to be scored by student and teachers, which the pipeline does "
        "for ordinary rollouts alone: not built."
    )
    return Section("Techniques: log-odds along continuations", text, ["task", "control", "continuations", "economy", "unweighted"], rows)


class _Continuations:
    """Outcomes of a run's continuations, less the mean of their stratum, and each teacher's control."""

    def __init__(self, tables: dict[str, Any], student: Model, teachers: dict[str, Model]) -> None:
        nodes = read_nodes(tables)
        place = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
        paths = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in tables["rollouts"].to_pylist()}
        asked = {row["question_id"]: tuple(row["prompt_token_ids"]) for row in tables["questions"].to_pylist()}
        shown = {(r["teacher"], r["question_id"]): tuple(r["prompt_token_ids"]) for r in tables["contexts"].to_pylist() if r["available"]}
        weight = np.zeros(nodes.probs.shape)
        for row in tables["node_signals"].to_pylist():
            if row["teacher"] == "teacher":
                i, size = place[row["node_id"]], len(row["signal"])
                probs, signal = nodes.probs[i, :size], np.array(row["signal"])
                weight[i, :size] = (probs * (signal - np.sum(probs * signal))) ** 2
        keys: list[tuple[int, int]] = []
        questions: list[str] = []
        outcomes: list[float] = []
        requests: list[ScoreRequest] = []
        for row in tables["continuations"].to_pylist():
            node = nodes.rows[place[row["node_id"]]]
            before = (*paths[node["question_id"], node["rollout_index"]][: node["position"]], row["forced_token_id"])
            response = (*before, *row["token_ids"])
            keys.append((place[row["node_id"]], row["stratum"]))
            questions.append(node["question_id"])
            outcomes.append(float(row["outcome"] == Outcome.CORRECT))
            requests.append(ScoreRequest(asked[node["question_id"]], response, tuple(range(len(before), len(response)))))
        self._fold = np.unique(questions, return_inverse=True)[1]
        _, stratum = np.unique(np.array(keys), axis=0, return_inverse=True)
        means = np.bincount(stratum, outcomes) / np.bincount(stratum)
        self.deviations = np.array(outcomes) - means[stratum]
        """Outcome less the stratum's mean, per continuation."""
        self._weight = weight[tuple(np.array(keys).T)]
        self.controls: dict[str, np.ndarray] = {}
        """By teacher; zero for a question whose context is missing."""
        for name, model in teachers.items():
            control = np.zeros(len(requests))
            own = [k for k, question in enumerate(questions) if model is not student or (name, question) in shown]
            for start in range(0, len(own), 256):
                part = own[start : start + 256]
                prompts = [shown.get((name, questions[k]), requests[k].prompt_ids) for k in part]
                control[part] = _sums(student, model, [requests[k] for k in part], prompts)
            totals = np.bincount(stratum, control) / np.bincount(stratum)
            self.controls[name] = control - totals[stratum]

    def economy(self, names: list[str]) -> list[str]:
        """By how much less the outcomes vary, as they weigh in a gain and as they are."""
        columns = np.stack([self.controls[name] for name in names], axis=1)
        left = self.deviations - np.sum(cross_fitted_slopes(columns, self.deviations, self._fold) * columns, axis=1)
        return [f"{np.sum(w * self.deviations**2) / np.sum(w * left**2):.2f}×" for w in (self._weight, np.ones(len(left)))]


def _sums(student: Model, teacher: Model, requests: list[ScoreRequest], prompts: list[tuple[int, ...]]) -> np.ndarray:
    """Sum over the drawn tokens of each continuation of the centred, cut log-ratio."""
    told = [ScoreRequest(prompt, request.response_ids, request.positions) for prompt, request in zip(prompts, requests, strict=True)]
    rows = sum(len(request.positions) for request in requests)
    if rows == 0:
        return np.zeros(len(requests))
    own, other = (np.asarray(model.scorer().encode(each).logprobs(0, rows, 1.0)) for model, each in ((student, requests), (teacher, told)))
    ratio = np.clip(other - own, -_MOST, _MOST)
    taken = np.array([request.response_ids[position] for request in requests for position in request.positions])
    centred = ratio[np.arange(rows), taken] - np.sum(np.exp(own) * ratio, axis=1)
    owner = np.repeat(np.arange(len(requests)), [len(request.positions) for request in requests])
    return np.bincount(owner, centred, minlength=len(requests))
