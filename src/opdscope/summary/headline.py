"""The summary of a run: teachers ranked by gain over null, and everything that must stand beside a result."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from opdscope.config import NULL_CONTEXTS, Config, TeacherConfig
from opdscope.core.aggregation import clustered_mean
from opdscope.records import TAIL, Outcome, Role
from opdscope.summary.nodes import PATHS, NodeArrays, NodeMeasures, Posterior, measure_nodes, node_posterior, read_nodes
from opdscope.summary.paper import summarize_paper
from opdscope.summary.rivals import accuracy_gaps, divergence_means, rank_correlations
from opdscope.summary.teachers import (
    NULLS,
    QuestionGains,
    choose_null,
    gain_per_push,
    measured_rollouts,
    outcome_values,
    screen_questions,
    summarize_targeted,
)


@dataclass(frozen=True)
class Summary:
    """What a run says, as plain data. Undefined numbers are None. An estimate is a mapping with value, low, high, standard_error, num_clusters."""

    data: dict[str, Any]
    """Sections: verdict, student, teachers (ranked), nulls, targeted, paper, rivals, spent, settings; and times, which alone differ between runs."""

    def to_json(self) -> str:
        """The data as JSON text, keys in a fixed order."""
        return json.dumps(self.data, indent=2, ensure_ascii=False, allow_nan=False)


def summarize(tables: Mapping[str, pa.Table], config: Config, times: Sequence[Mapping[str, Any]] = ()) -> Summary:
    """The summary of what is stored, complete or not.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration; `analysis` may be changed.
        times: What each unit took, from :meth:`opdscope.store.Run.times`.

    Returns:
        The summary. Teachers are ranked by gain over null for the first objective; what is undefined comes last.
    """
    screening = screen_questions(tables)
    nodes = read_nodes(tables)
    student = _student(tables, config)
    teachers = _teachers(tables, config, screening)
    targeted: dict[str, Any] | None = None
    if nodes.rows and config.paper is None:  # averages over the nodes of `protocol: paper` have a section of their own
        posterior = node_posterior(nodes, config)
        measures = measure_nodes(tables, nodes, posterior, config)
        targeted = _health(nodes, measures)
        _add_targeted(teachers, measures, nodes, posterior, config)
    ranked = sorted(teachers, key=_rank_key)
    _add_differences(ranked, screening, config)
    data = {
        "verdict": _verdict(ranked, student),
        "student": student,
        "teachers": ranked,
        "null": _null(screening, config),
        "targeted": targeted,
        "paper": None if config.paper is None else summarize_paper(tables, config, config.paper, ranked),
        "rival_rank_correlations": rank_correlations(ranked),
        "spent": _spent(tables),
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
    return Summary(_plain(data))


def _student(tables: Mapping[str, pa.Table], config: Config) -> dict[str, Any]:
    rollouts = measured_rollouts(tables)
    flat = [row for rows in rollouts.values() for row in rows]
    means = [np.nanmean(v) if len(v) and not np.isnan(v).all() else np.nan for v in map(outcome_values, rollouts.values())]
    counts = {outcome: sum(row["outcome"] == outcome for row in flat) for outcome in Outcome}
    mixed = sum(len(set(values[~np.isnan(values)])) == 2 for values in map(outcome_values, rollouts.values()))
    return {
        "success": clustered_mean(np.array(means), config.analysis.confidence),
        "num_questions": len(rollouts),
        "num_questions_with_both_outcomes": mixed,
        "num_rollouts": len(flat),
        "outcomes": {outcome.value: count for outcome, count in counts.items()},
        "share_truncated": counts[Outcome.TRUNCATED] / len(flat) if flat else None,
        "share_unverifiable": counts[Outcome.UNVERIFIABLE] / len(flat) if flat else None,
    }


def _teachers(tables: Mapping[str, pa.Table], config: Config, screening: Mapping[tuple[str, str], QuestionGains]) -> list[dict[str, Any]]:
    rivals = divergence_means(tables)
    gaps = accuracy_gaps(tables, config)
    contexts = tables["contexts"].select(["teacher", "available", "reason"]).to_pylist()
    found: list[dict[str, Any]] = []
    configured: dict[str, TeacherConfig | None] = {**{t.name: t for t in config.teachers}, **dict.fromkeys(NULLS)}
    for name, teacher in configured.items():
        if (name, config.objectives[0]) not in screening:
            continue
        skipped = [row["reason"] for row in contexts if row["teacher"] == name and not row["available"]]
        own_rivals: dict[str, float] = dict(rivals.get(name, {}))
        if name in gaps:
            own_rivals["accuracy_gap"] = gaps[name].value
        objectives = {objective: _objective(screening, name, objective, config) for objective in config.objectives}
        found.append(
            {
                "name": name,
                "null": teacher is None or teacher.privileged_context in NULL_CONTEXTS,
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
    own = screening[name, objective]
    level = config.analysis.confidence
    null = choose_null(screening, objective)
    expected, factor = null.beside(own)
    natural = clustered_mean(own.natural_gain, level)
    over_null = clustered_mean(own.natural_gain - expected, level)
    # a null that defines the comparison has nothing over itself, by construction and not by measurement
    itself = name == null.name
    return {
        "natural_gain": natural,
        "gain_over_null": over_null,
        "gain": clustered_mean(own.gain, level),
        "natural_gain_per_sqrt_kl": gain_per_push(own, level),
        "null_factor": factor,
        "verdict": "null" if itself else _teacher_verdict(natural.low, natural.high, over_null.low, over_null.high, null.name),
    }


def _teacher_verdict(low: float, high: float, over_low: float, over_high: float, null: str | None) -> str:
    if high < 0:
        return "harms"
    if low > 0 and over_low > 0:
        return "helps"
    if low > 0 and null is not None:
        return f"{null} does as well" if over_high >= 0 else f"{null} does better"
    return "undecided"


def _add_targeted(
    teachers: Sequence[dict[str, Any]], measures: Sequence[NodeMeasures], nodes: NodeArrays, posterior: Posterior, config: Config
) -> None:
    by_key = {(m.teacher, m.objective): m for m in measures}
    for teacher in teachers:
        for objective, numbers in teacher["objectives"].items():
            own = by_key.get((teacher["name"], objective))
            if own is not None:
                numbers["targeted"] = {paths: summarize_targeted(own, nodes, posterior, paths, config) for paths in PATHS}
                numbers["teacher_mass_outside"] = _weighted(own.tail_prob, [nodes.rows[i] for i in own.index])
        teacher["targeted"] = teacher["objectives"][config.objectives[0]].get("targeted")


def _add_differences(ranked: Sequence[dict[str, Any]], screening: Mapping[tuple[str, str], QuestionGains], config: Config) -> None:
    """To each teacher the paired difference of the first real one's gain over null and its own, on the questions that both have."""
    objective = config.objectives[0]
    null = choose_null(screening, objective)
    over: dict[str, np.ndarray] = {}
    for teacher in ranked:
        own = screening[teacher["name"], objective]
        over[teacher["name"]] = own.natural_gain - null.beside(own)[0]
    first = next(teacher["name"] for teacher in [*ranked] if not teacher["null"]) if any(not t["null"] for t in ranked) else None
    for teacher in ranked:
        difference = (
            None if first in (None, teacher["name"]) else clustered_mean(over[first] - over[teacher["name"]], config.analysis.confidence)
        )
        teacher["behind_first"] = difference


def _null(screening: Mapping[tuple[str, str], QuestionGains], config: Config) -> dict[str, Any]:
    return {objective: choose_null(screening, objective).name for objective in config.objectives}


def _health(nodes: NodeArrays, measures: Sequence[NodeMeasures]) -> dict[str, Any]:
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
    }


def _weighted(values: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> float:
    weights = np.array([1.0 / (row["path_inclusion"] * row["inclusion"]) for row in rows])
    return float(np.sum(weights * values) / np.sum(weights))


def _spent(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    rollouts = tables["rollouts"].select(["role", "token_ids"]).to_pylist()
    continuations = [len(row["token_ids"]) for row in tables["continuations"].select(["token_ids"]).to_pylist()]
    teachers = [row["num_tokens"] for row in tables["teacher_rollouts"].select(["num_tokens"]).to_pylist()]
    measured = [len(row["token_ids"]) for row in rollouts if row["role"] == Role.MEASURED]
    lengths = [len(row["token_ids"]) for row in rollouts]
    scored = sum(
        len(row["entropy"]) for row in tables["teacher_positions"].select(["teacher", "entropy"]).to_pylist() if row["teacher"] not in NULLS
    )
    return {
        "rollouts": len(lengths),
        "demonstrations": len(lengths) - len(measured),
        "teacher_rollouts": len(teachers),
        "continuations": len(continuations),
        "generated_tokens": sum(lengths) + sum(continuations) + sum(teachers),
        "scored_tokens": sum(measured) + scored,
        "tail_strata": sum(row["token_id"] == TAIL for row in tables["strata"].select(["token_id"]).to_pylist()),
    }


def _times(times: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for entry in times:
        seconds[entry["stage"]] = round(seconds.get(entry["stage"], 0.0) + entry["seconds"], 3)
    return seconds


def _verdict(ranked: Sequence[Mapping[str, Any]], student: Mapping[str, Any]) -> dict[str, str]:
    outcomes = student["outcomes"]
    right, wrong = outcomes["correct"], outcomes["incorrect"] + outcomes["truncated"]
    if right + wrong == 0:
        return {"kind": "nothing to measure", "text": "There is nothing to measure: no response could be verified."}
    if right == 0 or wrong == 0:
        kind, remedy = ("right", "harder") if wrong == 0 else ("wrong", "easier")
        text = f"There is nothing to measure: all {right + wrong} verified rollouts are {kind}. Choose {remedy} questions."
        return {"kind": "nothing to measure", "text": text}
    helping = [teacher for teacher in ranked if teacher["verdict"] == "helps" and not teacher["null"]]
    if helping:
        first = helping[0]
        real = [teacher for teacher in ranked if not teacher["null"] and teacher is not first]
        rivals = [t["name"] for t in real if t["behind_first"] is not None and not t["behind_first"].low > 0]
        tie = f"; not told apart from it: {', '.join(rivals)}" if rivals else ""
        return {"kind": "helps", "text": f"{first['name']} helps most, beyond what a teacher that knows nothing would{tie}."}
    beaten = [t for t in ranked if not t["null"] and (t["verdict"].endswith("does as well") or t["verdict"].endswith("does better"))]
    if beaten:
        null = beaten[0]["verdict"].split(" ")[0]
        word = {"sharpened": "sharpening", "flattened": "flattening"}[null]
        return {"kind": "null", "text": f"No teacher is shown to beat its null: {word} the student would do."}
    if all(teacher["verdict"] == "harms" for teacher in ranked if not teacher["null"]):
        return {"kind": "no teacher helps", "text": "No teacher helps here: every one lowers the chance of success."}
    return {
        "kind": "undecided",
        "text": "No teacher is shown to help here; the intervals still reach zero. More rollouts would narrow them.",
    }


def _rank_key(teacher: Mapping[str, Any]) -> tuple[bool, float]:
    value = teacher["gain_over_null"].value
    return math.isnan(value), -value


def _plain(value: Any) -> Any:
    """Plain JSON data: dataclasses as mappings, numpy numbers as Python's, and what is not finite as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
