"""A real, tiny transformer: tokens for a teacher's gain by ordinary rollouts and by targeted ones, on the same questions."""

import tempfile
from pathlib import Path
from typing import Any

from allocator import CHAIN
from page import Section

import opdscope
from opdscope.config import load_config

QUESTIONS = 8

REDUCED = {
    "control variates": {"control_variates": True},
    "fitted values": {"fitted_values": True},
    "control variates and fitted values": {"control_variates": True, "fitted_values": True},
}
"""Switches of the analysis that lower the variance of screening."""


def gains() -> Section:
    """Interval of each teacher's natural gain against generated tokens."""
    base = {**CHAIN, "task": {"kind": "chain", "num_questions": QUESTIONS}}
    uniform = {**CHAIN["targeted"], "uniform_share": 1.0, "continuations_per_node": 7 * 8}
    runs = {
        "screening, 64 rollouts a question": {**base, "rollouts": {**CHAIN["rollouts"], "num_rollouts": 64}},
        "(a) targeted rollouts, uniform": {**base, "targeted": uniform},
        "targeted rollouts, `target: tokens`": {**base, "target": {"kind": "tokens", "tokens": 30_000}},
    }
    rows: list[list[Any]] = []
    needed: dict[str, dict[str, float]] = {}
    for way, settings in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            function = opdscope.screen if way.startswith("screening") else opdscope.diagnose
            run = function(settings, run_dir=Path(folder) / "run")
            tokens = sum(len(row) for name in ("rollouts", "continuations") for row in run.table(name)["token_ids"].to_pylist())
            readings = {way: run.config}
            if way.startswith("screening"):
                for reading, analysis in REDUCED.items():
                    readings[f"{way}, {reading}"] = load_config({**run.config.model_dump(mode="json"), "analysis": analysis})
            for reading, settings_read in readings.items():
                for teacher in opdscope.summarize(run.tables(), settings_read).data["teachers"]:
                    if not teacher["is_null"]:
                        estimate = (
                            teacher["natural_gain"] if reading.startswith("screening") else teacher["targeted"]["all"]["natural_gain"]
                        )
                        cost = tokens * (10 * estimate["standard_error"] / estimate["value"]) ** 2
                        needed.setdefault(teacher["name"], {})[reading] = cost
                        half = (estimate["high"] - estimate["low"]) / 2
                        rows.append([teacher["name"], reading, f"{tokens:,}", f"{estimate['value']:+.3f} ± {half:.3f}", f"{cost:,.0f}"])
    rows.sort(key=lambda row: row[0])
    checks = [
        (
            f"{name}: screening needs fewer tokens than uniform targeted rollouts",
            ways["screening, 64 rollouts a question"] < ways["(a) targeted rollouts, uniform"],
        )
        for name, ways in needed.items()
    ]
    text = (
        f"The embedded chain transformer, {QUESTIONS} questions, the same seeds. *Needed*: tokens at which the standard error would be a tenth "
        "of the estimate, if it falls as one over the root of the tokens; with few questions their own differences set a floor that no tokens lower."
    )
    return Section(
        "A real transformer: tokens for a teacher's gain", text, ["teacher", "way", "tokens", "natural gain", "needed"], rows, checks
    )
