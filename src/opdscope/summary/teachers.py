"""Per question sums, and from them each teacher's numbers: screening gains, gains over the null, targeted gains and alignment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_mean, clustered_statistic, pooled_cosine, ratio
from opdscope.core.screening import screening_gain, teacher_pushes
from opdscope.records import Outcome, Role
from opdscope.summary.nodes import NodeArrays, NodeMeasures, Posterior

NULLS = ("sharpened", "flattened")
"""The student's own null teachers, by name."""


@dataclass(frozen=True)
class QuestionGains:
    """Screening of one (teacher, objective), one entry per question of the run; NaN where the teacher has no context or nothing is verified."""

    natural_gain: Float[np.ndarray, "question"]
    """Natural gain summed over a response."""
    gain: Float[np.ndarray, "question"]
    """Euclidean gain summed over a response."""
    reverse_kl: Float[np.ndarray, "question"]
    """KL(student ‖ teacher) summed over a response, mean over rollouts, in nats."""


def outcome_values(rollouts: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "rollout"]:
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE."""
    values = {Outcome.CORRECT: 1.0, Outcome.UNVERIFIABLE: np.nan}
    return np.array([values.get(Outcome(row["outcome"]), 0.0) for row in rollouts])


def measured_rollouts(tables: Mapping[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Measured rollouts by question, in order; every question of the run has an entry."""
    found: dict[str, list[dict[str, Any]]] = {row["question_id"]: [] for row in tables["questions"].select(["question_id"]).to_pylist()}
    for row in tables["rollouts"].select(["question_id", "rollout_index", "role", "outcome"]).to_pylist():
        if row["role"] == Role.MEASURED:
            found[row["question_id"]].append(row)
    return found


def screen_questions(tables: Mapping[str, pa.Table]) -> dict[tuple[str, str], QuestionGains]:
    """Screening gains of every teacher and objective on every question, teachers in the order in which they were stored."""
    rollouts = measured_rollouts(tables)
    outcomes = {q: outcome_values(rows) for q, rows in rollouts.items()}
    kl: dict[tuple[str, str], list[float]] = {}
    for row in tables["teacher_positions"].select(["question_id", "teacher", "reverse_kl"]).to_pylist():
        kl.setdefault((row["teacher"], row["question_id"]), []).append(float(np.sum(row["reverse_kl"], dtype=np.float64)))
    pushes: dict[tuple[str, str], dict[str, dict[int, tuple[float, float]]]] = {}
    columns = ["question_id", "rollout_index", "teacher", "objective", "taken_signal", "taken_gradient"]
    for row in tables["scores"].select(columns).to_pylist():
        signal, gradient = teacher_pushes([row["taken_signal"], row["taken_gradient"]])
        per_question = pushes.setdefault((row["teacher"], row["objective"]), {}).setdefault(row["question_id"], {})
        per_question[row["rollout_index"]] = (float(signal), float(gradient))
    result: dict[tuple[str, str], QuestionGains] = {}
    for (teacher, objective), by_question in pushes.items():
        gains = np.full((2, len(rollouts)), np.nan)
        for i, (question_id, rows) in enumerate(rollouts.items()):
            own = by_question.get(question_id)
            if own is not None:
                ordered = np.array([own[row["rollout_index"]] for row in rows]).T
                gains[:, i] = screening_gain(outcomes[question_id], ordered)
        divergence = np.array([np.mean(kl[teacher, q]) if (teacher, q) in kl else np.nan for q in rollouts])
        result[teacher, objective] = QuestionGains(gains[0], gains[1], divergence)
    return result


@dataclass(frozen=True)
class NullChoice:
    """What can be had without knowing anything: the best of doing nothing, sharpening and flattening, at a given size of the push."""

    name: str | None
    """`sharpened`, `flattened`, or None where neither has a positive gain: then the comparison is with zero."""
    gains: QuestionGains | None
    """Its screening gains."""

    def beside(self, teacher: QuestionGains) -> tuple[Float[np.ndarray, "question"], float]:
        """The null's natural gain per question at the teacher's size of the push, and the factor that it was scaled by.

        A null's gain is linear in its signal and its size grows as √KL, so the factor √(KL_teacher / KL_null) makes it push as hard.
        """
        if self.gains is None:
            return np.where(np.isnan(teacher.natural_gain), np.nan, 0.0), 0.0
        common = ~np.isnan(teacher.natural_gain) & ~np.isnan(self.gains.natural_gain)
        own, null = (
            np.mean(teacher.reverse_kl[common]) if common.any() else 0.0,
            np.mean(self.gains.reverse_kl[common]) if common.any() else 0.0,
        )
        factor = float(np.sqrt(own / null)) if null > 0 else 0.0
        return np.where(common, factor * self.gains.natural_gain, np.nan), factor


def choose_null(screening: Mapping[tuple[str, str], QuestionGains], objective: str) -> NullChoice:
    """The null that every teacher has to beat, chosen by pooled gain per √KL; choosing the better one can only make the test harder."""
    best, chosen = 0.0, NullChoice(None, None)
    for name in NULLS:
        gains = screening.get((name, objective))
        if gains is None or np.isnan(gains.natural_gain).all():
            continue
        size = float(np.sqrt(np.nanmean(gains.reverse_kl)))
        rate = float(np.nanmean(gains.natural_gain)) / size if size > 0 else 0.0
        if rate > best:
            best, chosen = rate, NullChoice(name, gains)
    return chosen


def gain_per_push(gains: QuestionGains, confidence: float) -> Estimate:
    """Natural gain over √KL of a response: what predicts where updates have a normalised size."""
    sums = np.stack([gains.natural_gain, gains.reverse_kl, np.where(np.isnan(gains.natural_gain), np.nan, 1.0)], axis=-1)
    return clustered_statistic(sums, lambda s: float(s[0] / s[2] / np.sqrt(s[1] / s[2])) if s[1] > 0 else float("nan"), confidence)


@dataclass(frozen=True)
class Targeted:
    """What targeted rollouts say of one (teacher, objective) on one class of paths; each with an interval clustered by question."""

    natural_gain: Estimate
    """Natural gain summed over a response; the same quantity as screening's where all paths are taken."""
    gain: Estimate
    """Euclidean gain summed over a response."""
    advantage: Estimate
    """Teacher advantage, mean over nodes."""
    mean_score: Estimate
    """Mean over nodes of the per-node cosine."""
    pooled_alignment: Estimate
    """Pooled cosine with noise-corrected norm."""
    num_nodes: int
    """Nodes it rests on."""
    num_undefined: int
    """Of these, nodes whose cosine is undefined."""


def summarize_targeted(measures: NodeMeasures, nodes: NodeArrays, posterior: Posterior, paths: str, config: Config) -> Targeted:
    """Weighted by inverse inclusion probability, clustered by question.

    Args:
        measures: The teacher's numbers at its nodes.
        nodes: All nodes.
        posterior: Success at all nodes.
        paths: `all`, `correct` or `incorrect`: the outcome of the path that a node lies on. The numbers themselves come from fresh continuations.
        config: Confidence.
    """
    rows = [nodes.rows[i] for i in measures.index]
    chosen = np.array([paths == "all" or row["path_outcome"] == paths for row in rows], dtype=bool)
    ideal = posterior.ideal_squared_norm[measures.index]
    path_weight = np.array([1.0 / row["path_inclusion"] for row in rows])
    weight = path_weight / np.array([row["inclusion"] for row in rows])
    clusters = _clusters(rows, chosen)
    per_path = {key: path_weight[index[0]] for key, index in _paths(rows, chosen).items()}
    size = {q: sum(w for (question, _), w in per_path.items() if question == q) for q in clusters}
    level = config.analysis.confidence

    def total(values: Float[np.ndarray, "node"]) -> Estimate:
        return clustered_mean(np.array([np.sum(weight[i] * values[i]) / size[q] for q, i in clusters.items()]), level)

    def statistic(columns: Sequence[Float[np.ndarray, "node"]], function: Callable[[np.ndarray], float]) -> Estimate:
        stacked = np.stack(columns, axis=-1)
        sums = [np.nansum(weight[i, None] * stacked[i], axis=0) / size[q] for q, i in clusters.items()]
        return clustered_statistic(np.array(sums).reshape(-1, len(columns)), function, level)

    score, advantage, gains = measures.score[:, 0], measures.advantage[:, 0], measures.gain[:, 0]
    return Targeted(
        natural_gain=total(measures.natural_gain[:, 0]),
        gain=total(gains),
        advantage=statistic([advantage, np.ones_like(advantage)], ratio),
        mean_score=statistic([score, np.where(np.isnan(score), np.nan, 1.0)], ratio),
        pooled_alignment=statistic([gains, ideal, measures.gradient_squared_norm], pooled_cosine),
        num_nodes=int(chosen.sum()),
        num_undefined=int(np.isnan(score[chosen]).sum()),
    )


def _clusters(rows: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[str, np.ndarray]:
    grouped: dict[str, list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        grouped.setdefault(rows[i]["question_id"], []).append(i)
    return {question: np.array(members) for question, members in grouped.items()}


def _paths(rows: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[tuple[str, int], list[int]]:
    grouped: dict[tuple[str, int], list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        grouped.setdefault((rows[i]["question_id"], rows[i]["rollout_index"]), []).append(i)
    return grouped
