"""The summary of a run: teachers ranked by gain over null, and everything that must stand beside a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from opdscope.config import NULL_CONTEXTS, Config, TeacherConfig
from opdscope.core.aggregation import clustered_mean
from opdscope.records import TAIL, Outcome, Role
from opdscope.summary.looks import screen_looks
from opdscope.summary.measures import NodeMeasures, measure_nodes
from opdscope.summary.needed import needed_to_settle, verdict_with_needed
from opdscope.summary.nodes import PATHS, NodeArrays, Posterior, node_posterior, read_nodes
from opdscope.summary.paper import summarize_paper
from opdscope.summary.parameters import parameter_alignments
from opdscope.summary.paths import list_arrays
from opdscope.summary.plain import as_json, plain
from opdscope.summary.ranking import compare, rank, verdict
from opdscope.summary.rivals import accuracy_gaps, divergence_means, log_odds_values, rank_correlations
from opdscope.summary.target import summarize_target
from opdscope.summary.teachers import (
    QuestionGains,
    gain_per_push,
    measured_rollouts,
    null_of,
    outcome_values,
    question_success,
    summarize_targeted,
)
from opdscope.summary.truncation import Truncation, truncations
from opdscope.summary.weights import node_weights


@dataclass(frozen=True)
class Summary:
    """What a run says, as plain data. Undefined numbers are None. An estimate is a mapping with value, low, high, standard_error, num_clusters."""

    data: dict[str, Any]
    """Sections: verdict, student, teachers (ranked), comparisons, nulls, targeted, truncations, parameters, paper, rivals, spent, target,
    settings; and times.

    Only times may differ between runs of one configuration."""

    def to_json(self) -> str:
        """The data as JSON text, keys in a fixed order."""
        return as_json(self.data)


def summarize(tables: Mapping[str, pa.Table], config: Config, times: Sequence[Mapping[str, Any]] = ()) -> Summary:
    """The summary of what is stored, complete or not.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration; `analysis` may be changed.
        times: What each unit took, from :meth:`opdscope.store.Run.times`.

    Returns:
        The summary. Teachers are ranked by gain over null for the first objective; what is undefined comes last.
    """
    looks = screen_looks(tables, config)
    screening = looks[-1]
    nodes = read_nodes(tables)
    student = _student(tables, config)
    teachers = _teachers(tables, config, screening)
    targeted: dict[str, Any] | None = None
    truncated: list[Truncation] = []
    if nodes.rows and config.paper is None:  # averages over the nodes of `protocol: paper` have a section of their own
        posterior = node_posterior(tables, nodes, config)
        measures = measure_nodes(tables, nodes, posterior, config)
        targeted = _health(nodes, measures, posterior)
        _add_targeted(teachers, measures, screening, nodes, posterior, config)
        truncated = truncations(tables, nodes, posterior, config)
    ranked = rank(teachers, looks, config)
    spent = _spent(tables)
    needed = needed_to_settle(ranked, config.analysis.smallest_gain, config.analysis.confidence, spent["rollout_tokens"])
    data = {
        "verdict": verdict_with_needed(verdict(ranked, student), needed),
        "student": student,
        "teachers": ranked,
        "comparisons": compare([teacher["name"] for teacher in ranked if not teacher["is_null"]], looks, config),
        "nulls": tables["nulls"].to_pylist(),
        "targeted": targeted,
        "truncations": truncated,
        "parameters": parameter_alignments(tables, config),
        "paper": None if config.paper is None else summarize_paper(tables, config, config.paper, ranked),
        "rival_rank_correlations": rank_correlations(ranked),
        "rival_rank_correlations_with_nulls": rank_correlations(ranked, nulls=True),
        "spent": spent,
        "target": summarize_target(tables, config),
        "settings": {
            "name": config.name,
            "objective": config.objectives[0],
            "confidence": config.analysis.confidence,
            "temperature": config.rollouts.temperature,
            "max_completion_length": config.rollouts.max_completion_length,
            "seed": config.seed,
        },
        "times": _times(times),
    }
    return Summary(plain(data))


def _student(tables: Mapping[str, pa.Table], config: Config) -> dict[str, Any]:
    rollouts = measured_rollouts(tables)
    flat = [row for rows in rollouts.values() for row in rows]
    counts = {outcome: sum(row["outcome"] == outcome for row in flat) for outcome in Outcome}
    mixed = sum(len(set(values[~np.isnan(values)])) == 2 for values in map(outcome_values, rollouts.values()))
    return {
        "success": clustered_mean(np.array(list(question_success(tables).values())), config.analysis.confidence),
        "num_questions": len(rollouts),
        "num_questions_with_both_outcomes": mixed,
        "num_rollouts": len(flat),
        "outcomes": {outcome.value: count for outcome, count in counts.items()},
        "share_truncated": counts[Outcome.TRUNCATED] / len(flat) if flat else None,
        "share_unverifiable": counts[Outcome.UNVERIFIABLE] / len(flat) if flat else None,
    }


def _teachers(tables: Mapping[str, pa.Table], config: Config, screening: Mapping[tuple[str, str], QuestionGains]) -> list[dict[str, Any]]:
    rivals, log_odds = divergence_means(tables), log_odds_values(tables)
    gaps = accuracy_gaps(tables, config)
    contexts = tables["contexts"].select(["teacher", "available", "reason"]).to_pylist()
    found: list[dict[str, Any]] = []
    nulls = [row["teacher"] for row in tables["nulls"].to_pylist()]
    configured: dict[str, TeacherConfig | None] = {**{t.name: t for t in config.teachers}, **dict.fromkeys(nulls)}
    for name, teacher in configured.items():
        if (name, config.objectives[0]) not in screening:
            continue
        skipped = [row["reason"] for row in contexts if row["teacher"] == name and not row["available"]]
        own_rivals: dict[str, float] = {**rivals.get(name, {}), "log_odds_value": log_odds.get(name, float("nan"))}
        if name in gaps:
            own_rivals["accuracy_gap"] = gaps[name].value
        objectives = {objective: _objective(screening, name, objective, config) for objective in config.objectives}
        found.append(
            {
                "name": name,
                "is_null": teacher is None or teacher.privileged_context in NULL_CONTEXTS,
                "model": "student" if teacher is None or teacher.teacher_model_name_or_path is None else teacher.teacher_model_name_or_path,
                "context": "plain" if teacher is None else teacher.privileged_context,
                "num_questions_skipped": len(skipped),
                "skip_reasons": {reason: skipped.count(reason) for reason in dict.fromkeys(skipped)},
                **objectives[config.objectives[0]],
                "rivals": own_rivals,
                "accuracy_gap": gaps.get(name),
                "objectives": objectives,
            }
        )
    return found


def _objective(screening: Mapping[tuple[str, str], QuestionGains], name: str, objective: str, config: Config) -> dict[str, Any]:
    own, null = screening[name, objective], null_of(screening, name, objective, config)
    level = config.analysis.confidence
    return {
        "natural_gain": clustered_mean(own.natural_gain, level),
        "gain_over_null": clustered_mean(own.natural_gain - null.natural_gain, level),
        "gain": clustered_mean(own.gain, level),
        "natural_gain_per_sqrt_kl": gain_per_push(own, level),
        "null_to_beat": {"name": null.name, "factor": null.factor, "natural_gain": clustered_mean(null.natural_gain, level)},
    }


def _add_targeted(
    teachers: Sequence[dict[str, Any]],
    measures: Sequence[NodeMeasures],
    screening: Mapping[tuple[str, str], QuestionGains],
    nodes: NodeArrays,
    posterior: Posterior,
    config: Config,
) -> None:
    by_key = {(m.teacher, m.objective): m for m in measures}
    for teacher in teachers:
        for objective, numbers in teacher["objectives"].items():
            own = by_key.get((teacher["name"], objective))
            if own is not None:
                choice = null_of(screening, teacher["name"], objective, config)
                null = np.zeros(len(nodes.rows))
                if choice.name is not None:
                    other = by_key[choice.name, objective]
                    null[other.index] = choice.factor * other.natural_gain[:, 0]
                numbers["targeted"] = {paths: summarize_targeted(own, null[own.index], nodes, posterior, paths, config) for paths in PATHS}
                numbers["teacher_mass_outside"] = _weighted(own.tail_prob, [nodes.rows[i] for i in own.index])
        teacher["targeted"] = teacher["objectives"][config.objectives[0]].get("targeted")


def _health(nodes: NodeArrays, measures: Sequence[NodeMeasures], posterior: Posterior) -> dict[str, Any]:
    coupling = posterior.coupling
    tail = np.sum(np.where(nodes.is_tail, nodes.probs, 0.0), axis=-1)
    unseen = (nodes.outcomes.num_verified == 0) & np.isnan(nodes.outcomes.terminal)
    return {
        "num_nodes": len(nodes.rows),
        "student_mass_outside_candidates": _weighted(tail, nodes.rows),
        "student_mass_not_sampled": _weighted(np.sum(np.where(unseen, nodes.probs, 0.0), axis=-1), nodes.rows),
        "teacher_mass_outside_candidates": {
            m.teacher: _weighted(m.tail_prob, [nodes.rows[i] for i in m.index]) for m in measures if m.objective == measures[0].objective
        },
        "share_of_nodes_without_success_range": float(np.mean(~nodes.has_range)),
        "num_strata": int(np.sum(nodes.probs > 0)),
        "shared_random_numbers": None
        if coupling is None
        else {"across_candidates": coupling.across, "within_pair": coupling.pair, "economy": 1.0 / coupling.contrast},
        "variance_left_by_controls": posterior.variance_left,
    }


def _weighted(values: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> float:
    weights = node_weights(rows)
    return float(np.sum(weights * values) / np.sum(weights))


def _spent(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    rollouts = tables["rollouts"].select(["role", "token_ids"]).to_pylist()
    continuations = [len(row["token_ids"]) for row in tables["continuations"].select(["token_ids"]).to_pylist()]
    teachers = [row["num_tokens"] for row in tables["teacher_rollouts"].select(["num_tokens"]).to_pylist()]
    measured = [len(row["token_ids"]) for row in rollouts if row["role"] == Role.MEASURED]
    lengths = [len(row["token_ids"]) for row in rollouts]
    nulls = set(tables["nulls"]["teacher"].to_pylist())
    scored = sum(
        len(row["entropy"]) for row in tables["teacher_positions"].select(["teacher", "entropy"]).to_pylist() if row["teacher"] not in nulls
    )
    scored += sum(map(len, list_arrays(tables["continuation_scores"]["centred_log_ratio"])))
    if tables["continuation_scores"].num_rows:  # the student read them too, once for all teachers
        scored += sum(continuations)
    return {
        "rollouts": len(lengths),
        "demonstrations": len(lengths) - len(measured),
        "teacher_rollouts": len(teachers),
        "continuations": len(continuations),
        "rollout_tokens": sum(lengths),
        "generated_tokens": sum(lengths) + sum(continuations) + sum(teachers),
        "scored_tokens": sum(measured) + scored,
        "tail_strata": sum(row["token_id"] == TAIL for row in tables["strata"].select(["token_id"]).to_pylist()),
    }


def _times(times: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for entry in times:
        seconds[entry["stage"]] = round(seconds.get(entry["stage"], 0.0) + entry["seconds"], 3)
    return seconds
