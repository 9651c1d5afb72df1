"""Cheap rivals of the gain: numbers that need no outcome, or only the teachers' own success. Printed in the same table, and ranked beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import special, stats

from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_mean
from opdscope.summary.teachers import measured_rollouts, outcome_values

DIVERGENCES = ("reverse_kl", "forward_kl", "jensen_shannon", "rare_mass", "overlap", "overlap_advantage")
"""Means over tokens, in nats except `rare_mass`, the teacher's probability on tokens that the student takes less often than 1 in 10,000, and
`overlap`, the share of the student's likeliest tokens that are among the teacher's (:mod:`opdscope.core.overlap`)."""


def divergence_means(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, float]]:
    """Per teacher, means over the tokens of all measured rollouts, and the entropy gap (teacher minus student, in nats)."""
    student: dict[tuple[str, int], float] = {}
    for row in tables["student_positions"].select(["question_id", "rollout_index", "entropy"]).to_pylist():
        student[row["question_id"], row["rollout_index"]] = float(np.sum(row["entropy"], dtype=np.float64))
    sums: dict[str, dict[str, float]] = {}
    for row in tables["teacher_positions"].to_pylist():
        own = sums.setdefault(row["teacher"], dict.fromkeys([*DIVERGENCES, "entropy_gap", "num_tokens"], 0.0))
        for name in DIVERGENCES:
            own[name] += float(np.sum(row[name], dtype=np.float64))
        own["entropy_gap"] += float(np.sum(row["entropy"], dtype=np.float64)) - student[row["question_id"], row["rollout_index"]]
        own["num_tokens"] += len(row["entropy"])
    return {
        teacher: {name: value / own["num_tokens"] for name, value in own.items() if name != "num_tokens"}
        for teacher, own in sums.items()
        if own["num_tokens"]
    }


def accuracy_gaps(tables: Mapping[str, pa.Table], config: Config) -> dict[str, Estimate]:
    """Success of each teacher under its own context minus the student's, on the same questions; empty if teachers were not sampled.

    References:
        arXiv 2605.30070: predicts the gain of self-distillation linearly.
    """
    students = {q: outcome_values(rows) for q, rows in measured_rollouts(tables).items()}
    own: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in tables["teacher_rollouts"].to_pylist():
        own.setdefault(row["teacher"], {}).setdefault(row["question_id"], []).append(row)
    gaps: dict[str, Estimate] = {}
    for teacher, by_question in own.items():
        differences = [_mean(outcome_values(rows)) - _mean(students[q]) for q, rows in by_question.items()]
        gaps[teacher] = clustered_mean(np.array(differences), config.analysis.confidence)
    return gaps


def log_odds_values(tables: Mapping[str, pa.Table]) -> dict[str, float]:
    r"""By how much the success that each teacher's likelihood ratios predict at a response's end is higher for correct than for incorrect ones.

    Returns:
        Per teacher, the mean over questions with both outcomes of the mean believed success of correct minus that of incorrect rollouts, in
        [-1, 1]: 0 where the ratios tell nothing, 1 where they tell all. NaN without such a question.

    Notes:
        :math:`\ell_{t+1} = \ell_t + \log q/p` of the token taken, from the log-odds of the question's success (half a success and half a
        failure added), the same for all its rollouts, and the value :math:`\sigma(\ell)`. The paper's teacher is the student shown the
        answer; here the recursion is run for every teacher.

    References:
        arXiv 2605.21851, Bayesian value recursion.
    """
    rollouts = measured_rollouts(tables)
    outcomes = {
        (q, row["rollout_index"]): value for q, rows in rollouts.items() for row, value in zip(rows, outcome_values(rows), strict=True)
    }
    sums = {q: (np.nansum(values), np.sum(~np.isnan(values))) for q, rows in rollouts.items() for values in (outcome_values(rows),)}
    values: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in tables["teacher_positions"].select(["question_id", "rollout_index", "teacher", "log_ratio"]).to_pylist():
        question, outcome = row["question_id"], outcomes[row["question_id"], row["rollout_index"]]
        if not np.isnan(outcome):
            right, count = sums[question]
            prior = np.log((right + 0.5) / (count - right + 0.5))
            believed = float(special.expit(prior + np.sum(row["log_ratio"], dtype=np.float64)))
            values.setdefault(row["teacher"], {}).setdefault(question, ([], []))[int(outcome)].append(believed)
    gaps = {
        teacher: [float(np.mean(right) - np.mean(wrong)) for wrong, right in by_question.values() if right and wrong]
        for teacher, by_question in values.items()
    }
    return {teacher: float(np.mean(own)) if own else float("nan") for teacher, own in gaps.items()}


LEAST_TEACHERS = 4
"""From so many on a rank correlation says anything."""


def rank_correlations(teachers: Sequence[Mapping[str, Any]], *, nulls: bool = False) -> dict[str, float | None]:
    """Spearman correlation, over teachers, of each rival with the natural gain; None with fewer than four teachers or without spread.

    Args:
        teachers: Ranked teachers with their rivals.
        nulls: Whether null teachers count, too: a rival that cannot tell them from teachers ranks them wrongly.
    """
    counted = [teacher for teacher in teachers if nulls or not teacher["is_null"]]
    names = list(dict.fromkeys(name for teacher in counted for name in teacher["rivals"]))
    result: dict[str, float | None] = {}
    for name in names:
        pairs = np.array([(t["rivals"].get(name, np.nan), t["natural_gain"].value) for t in counted])
        defined = pairs[~np.isnan(pairs).any(axis=1)]
        spread = len(defined) >= LEAST_TEACHERS and len(np.unique(defined[:, 0])) > 1 and len(np.unique(defined[:, 1])) > 1
        result[name] = float(np.corrcoef(stats.rankdata(defined[:, 0]), stats.rankdata(defined[:, 1]))[0, 1]) if spread else None
    return result


def _mean(values: np.ndarray) -> float:
    verified = values[~np.isnan(values)]
    return float(np.mean(verified)) if len(verified) else float("nan")
