"""From a run to the report's view model: plain data, every text in it inert. The numbers are the summary's; nothing is estimated here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import yaml

from opdscope.config import Config
from opdscope.report.chains import chain_view, spread_questions
from opdscope.report.html.health import checks
from opdscope.report.inert import inert_data
from opdscope.report.tokens import TokenTexts
from opdscope.summary import Chains
from opdscope.summary.plain import plain


def build_view(
    tables: Mapping[str, pa.Table],
    config: Config,
    summary: Mapping[str, Any],
    chains: Chains | None,
    texts: TokenTexts,
    provenance: Mapping[str, Any],
    most_questions: int,
) -> dict[str, Any]:
    """Everything that the template and its scripts show.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
        summary: `Summary.data`.
        chains: What was measured at single places; None for a run without targeted rollouts.
        texts: Token texts.
        provenance: What the run recorded of its origin.
        most_questions: Most questions in the chain view.

    Returns:
        JSON data in which undefined numbers are None and all text is inert.
    """
    matched = {null["teacher"] for null in summary["nulls"] if null["matched_teacher"]}
    teachers = [teacher for teacher in summary["teachers"] if teacher["name"] not in matched]
    names = [teacher["name"] for teacher in teachers]
    view = {
        "name": config.name,
        "verdict": summary["verdict"],
        "settings": summary["settings"],
        "student": summary["student"],
        "student_model": config.student.model_name_or_path,
        "teachers": [_teacher(teacher) for teacher in teachers],
        "objectives": list(config.objectives),
        "comparisons": summary["comparisons"],
        "contexts": _contexts(teachers, summary["comparisons"]),
        "truncations": _truncations(summary["truncations"]),
        "parameters": None if summary["parameters"] is None else _parameters(summary["parameters"], teachers),
        "rivals": list(dict.fromkeys(name for teacher in teachers for name in teacher["rivals"])),
        "rival_rank_correlations": [
            ("rank correlation, real teachers", summary["rival_rank_correlations"]),
            ("with the nulls", summary["rival_rank_correlations_with_nulls"]),
        ],
        "has_targeted": summary["targeted"] is not None,
        "is_paper": config.paper is not None,
        "paper": _paper(summary["paper"], matched),
        "along": {} if chains is None else _along(chains, names),
        "chains": None
        if chains is None
        else chain_view(tables, chains, texts, names, config.objectives[0], spread_questions(tables, chains, most_questions)),
        "health": checks(tables, config, summary),
        "spent": summary["spent"],
        "times": summary["times"],
        "config": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "provenance": json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False),
    }
    return inert_data(plain(view))


def _teacher(teacher: Mapping[str, Any]) -> dict[str, Any]:
    targeted = teacher.get("targeted")  # absent where nothing was measured at nodes
    return {
        "name": teacher["name"],
        "is_null": teacher["is_null"],
        "model": teacher["model"],
        "context": teacher["context"],
        "verdict": teacher["verdict"],
        "skipped": teacher["skip_reasons"],
        "num_questions": teacher["natural_gain"]["num_clusters"],
        "gain_over_null": teacher["gain_over_null"],
        "natural_gain": teacher["natural_gain"],
        "natural_gain_per_sqrt_kl": teacher["natural_gain_per_sqrt_kl"],
        "behind_first": teacher["behind_first"],
        "null": teacher["null_to_beat"],
        "rivals": teacher["rivals"],
        "accuracy_gap": teacher["accuracy_gap"],
        "split": None if targeted is None else {paths: dict(numbers) for paths, numbers in targeted.items()},
        "objectives": {
            name: {"gain_over_null": numbers["gain_over_null"], "natural_gain": numbers["natural_gain"], "verdict": numbers["verdict"]}
            for name, numbers in teacher["objectives"].items()
        },
    }


def _contexts(teachers: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models that were shown several contexts: these in order of gain over null, and how far each is behind the best one of the same model."""
    differences = {(pair["first"], pair["second"]): pair["difference"] for pair in comparisons}
    models: dict[str, list[Mapping[str, Any]]] = {}
    for teacher in teachers:
        if teacher["context"] != "plain" or not teacher["is_null"]:
            models.setdefault(teacher["model"], []).append(teacher)
    found: list[dict[str, Any]] = []
    for model, own in models.items():
        best = next((teacher["name"] for teacher in own if not teacher["is_null"]), None)
        if len(own) > 1 and best is not None:
            keys = ("name", "context", "is_null", "verdict", "gain_over_null")
            rows = [{**{key: t[key] for key in keys}, "behind": differences.get((best, t["name"]))} for t in own]
            found.append({"model": model, "rows": rows})
    return found


def _truncations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A line per teacher and objective, a column per truncation; None where one is not known."""
    columns = sorted({(row["size"], not row["tail_bucket"]) for row in rows})
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        start = {
            "name": row["teacher"],
            "is_null": False,
            "objective": row["objective"],
            "support": row["support"],
            "cells": [None] * len(columns),
        }
        line = lines.setdefault((row["teacher"], row["objective"]), start)
        line["cells"][columns.index((row["size"], not row["tail_bucket"]))] = row
    flips = sum(row["says"] == "flips" for row in rows)
    return {"columns": columns, "lines": list(lines.values()), "num_flips": flips} if rows else None


def _parameters(rows: Sequence[Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line per teacher, a column per objective; None where no gradient of the two is stored."""
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    found = {(row["teacher"], row["objective"]): row["alignment"] for row in rows}
    lines = [
        {"name": t["name"], "is_null": t["is_null"], "cells": [found.get((t["name"], objective)) for objective in objectives]}
        for t in teachers
    ]
    return {"objectives": objectives, "lines": [line for line in lines if any(line["cells"])]}


def _paper(paper: Mapping[str, Any] | None, matched: set[str]) -> dict[str, Any] | None:
    return None if paper is None else {**paper, "teachers": [t for t in paper["teachers"] if t["name"] not in matched]}


def _along(chains: Chains, teachers: Sequence[str]) -> dict[str, Any]:
    """Bins of each axis; teachers that are not listed are left out."""
    axes: dict[str, Any] = {}
    for axis, bins in chains.along.items():
        axes[axis] = [
            {
                "low": found.low,
                "high": found.high,
                "num_nodes": found.num_nodes,
                "ideal_norm": asdict(found.ideal_norm),
                "natural_gain": {name: asdict(found.natural_gain[name]) for name in teachers if name in found.natural_gain},
            }
            for found in bins
        ]
    return axes
