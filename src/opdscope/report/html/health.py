"""What must stand beside a result, each with a word for whether to worry and what to do about it."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from opdscope.config import Config
from opdscope.summary.nodes import planned_counts

_TRUNCATED, _UNVERIFIABLE, _OUTSIDE, _NO_RANGE = 0.1, 0.02, 0.05, 0.5
"""Shares above which a line of the report's health says `look`."""


def checks(tables: Mapping[str, pa.Table], config: Config, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines with `name`, `value` (text), `state` (`fine`, `look` or `note`) and `remedy` (text, where it says look)."""
    student, targeted, spent = summary["student"], summary["targeted"], summary["spent"]
    lines = [
        _share("Responses cut by the length limit", student["share_truncated"], _TRUNCATED, "raise rollouts.max_completion_length"),
        _share(
            "Responses that no verifier could judge",
            student["share_unverifiable"],
            _UNVERIFIABLE,
            "look at answer_pattern and the deadline",
        ),
    ]
    mixed, total = student["num_questions_with_both_outcomes"], student["num_questions"]
    lines.append(
        _line(
            "Questions with both outcomes",
            f"{mixed:,} of {total:,}",
            None if 2 * mixed >= total else "few questions carry information: choose ones the student gets right about half the time",
        )
    )
    if targeted is not None:
        worst = max((v for v in targeted["teacher_mass_outside_candidates"].values() if v is not None), default=None)
        lines += [
            _share(
                "Student's probability outside the candidates (sampled as the tail)",
                targeted["student_mass_outside_candidates"],
                _OUTSIDE,
                "raise targeted.max_candidates",
            ),
            _share("Of it, not sampled at all", targeted["student_mass_not_sampled"], _OUTSIDE, "raise targeted.continuations_per_node"),
            _share("Most of a teacher's probability outside the candidates", worst, _OUTSIDE, "raise targeted.max_candidates"),
            _share(
                "Nodes where no two candidates succeeded unequally often",
                targeted["share_of_nodes_without_success_range"],
                _NO_RANGE,
                "raise targeted.continuations_per_node, or choose less easy and less hard questions",
            ),
        ]
    lines += _spending(tables, config, spent)
    if summary["target"]["note"]:
        lines.append({"name": f"Target: {config.target.kind}", "value": summary["target"]["note"], "state": "note", "remedy": ""})
    for teacher in summary["teachers"]:
        for reason, count in teacher["skip_reasons"].items():
            lines.append(
                {"name": f"Skipped by {teacher['name']}", "value": f"{count:,} questions: {reason}", "state": "note", "remedy": ""}
            )
    return lines


def _spending(tables: Mapping[str, pa.Table], config: Config, spent: Mapping[str, int]) -> list[dict[str, Any]]:
    rollouts = tables["questions"].num_rows * (config.rollouts.num_rollouts + config.rollouts.num_demonstrations)
    continuations = sum(planned_counts(tables).values())
    ranks = config.target.kind == "rank"  # such a run ends when the order is settled
    drawn = f"{spent['rollouts']:,} of {'at most ' if ranks else ''}{rollouts:,}{'' if ranks else ' planned'}"
    unfinished = "run the same diagnosis again: it resumes"
    return [
        _line("Rollouts", drawn, None if spent["rollouts"] >= rollouts or ranks else unfinished),
        _line(
            "Continuations",
            f"{spent['continuations']:,} of {continuations:,} planned",
            None if spent["continuations"] >= continuations else unfinished,
        ),
        {
            "name": "Tokens",
            "value": f"{spent['generated_tokens']:,} generated, {spent['scored_tokens']:,} scored",
            "state": "note",
            "remedy": "",
        },
    ]


def _share(name: str, value: float | None, limit: float, remedy: str) -> dict[str, Any]:
    if value is None:
        return {"name": name, "value": "—", "state": "note", "remedy": ""}
    return _line(name, f"{value:.1%}", remedy if value > limit else None)


def _line(name: str, value: str, remedy: str | None) -> dict[str, Any]:
    return {"name": name, "value": value, "state": "fine" if remedy is None else "look", "remedy": remedy or ""}
