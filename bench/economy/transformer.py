"""Real transformers: the interval of each teacher's gain against generated tokens, by ordinary rollouts and by targeted ones."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allocator import CHAIN
from page import Section

import opdscope
from opdscope.config import load_config
from opdscope.summary.looks import rollouts_between

QUESTIONS = 8
HEAD = ["teacher", "way", "tokens", "natural gain", "needed"]
NEEDED = (
    "*Needed*: tokens at which the standard error would be a tenth of the estimate, if it falls as one over the root of the tokens; with few "
    "questions their own differences set a floor that no tokens lower."
)

_REDUCED = {
    "control variates": {"control_variates": True},
    "fitted values": {"fitted_values": True},
    "control variates and fitted values": {"control_variates": True, "fitted_values": True},
}
"""Switches of the analysis that lower the variance of screening."""


class Readings:
    """Gains read from runs, with what their tokens were."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        """Of the table, in the order of :data:`HEAD`."""
        self._needed: dict[tuple[str, str], float] = {}

    def screened(self, settings: Mapping[str, Any], sizes: list[int], reduced: bool) -> None:
        """Ordinary rollouts: the first so many of each question, and switches of the analysis at all of them."""
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.screen(settings, run_dir=Path(folder) / "run")
            tables = run.tables()
        for size in sizes:
            own = tables if size == sizes[-1] else rollouts_between(tables, 0, size)
            self._read(f"screening, {size} rollouts a question", own, run.config)
        for reading, analysis in _REDUCED.items() if reduced else ():
            config = load_config({**run.config.model_dump(mode="json"), "analysis": analysis})
            self._read(f"screening, {sizes[-1]} rollouts a question, {reading}", tables, config)

    def targeted(self, way: str, settings: Mapping[str, Any]) -> None:
        """Targeted rollouts; their paths are paid for as well."""
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose(settings, run_dir=Path(folder) / "run")
            self._read(way, run.tables(), run.config)

    def checks(self, way: str, against: str) -> list[tuple[str, bool]]:
        """Whether one way needs fewer tokens than another, for each teacher."""
        teachers = dict.fromkeys(name for name, _ in self._needed)
        label = f"{way.partition(',')[0]} needs fewer tokens than uniform targeted rollouts"
        return [(f"{name}: {label}", self._needed[name, way] < self._needed[name, against]) for name in teachers]

    def _read(self, way: str, tables: Mapping[str, Any], config: opdscope.Config) -> None:
        tokens = sum(len(row) for name in ("rollouts", "continuations") for row in tables[name]["token_ids"].to_pylist())
        for teacher in opdscope.summarize(tables, config).data["teachers"]:
            if not teacher["is_null"]:
                estimate = teacher["targeted"]["all"]["natural_gain"] if "targeted" in teacher else teacher["natural_gain"]
                cost = tokens * (10 * estimate["standard_error"] / estimate["value"]) ** 2
                self._needed[teacher["name"], way] = cost
                half = (estimate["high"] - estimate["low"]) / 2
                self.rows.append([teacher["name"], way, f"{tokens:,}", f"{estimate['value']:+.3f} ± {half:.3f}", f"{cost:,.0f}"])
        self.rows.sort(key=lambda row: row[0])


UNIFORM, PLACED = "(a) targeted rollouts, uniform", "targeted rollouts, `target: tokens`"


def gains() -> Section:
    """Of the embedded chain student."""
    base = {**CHAIN, "task": {"kind": "chain", "num_questions": QUESTIONS}}
    found = Readings()
    found.screened({**base, "rollouts": {**CHAIN["rollouts"], "num_rollouts": 64}}, [64], reduced=True)
    found.targeted(UNIFORM, {**base, "targeted": {**CHAIN["targeted"], "uniform_share": 1.0, "continuations_per_node": 7 * 8}})
    found.targeted(PLACED, {**base, "target": {"kind": "tokens", "tokens": 30_000}})
    text = f"The embedded chain transformer, {QUESTIONS} questions, the same seeds. {NEEDED}"
    checks = found.checks("screening, 64 rollouts a question", UNIFORM)
    return Section("A real transformer: tokens for a teacher's gain", text, HEAD, found.rows, checks)
