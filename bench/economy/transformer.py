"""A real, tiny transformer: tokens for a teacher's gain by ordinary rollouts and by targeted ones, on the same questions."""

import tempfile
from pathlib import Path
from typing import Any

from allocator import CHAIN
from page import Section

import opdscope

QUESTIONS = 16


def gains() -> Section:
    """Interval of each teacher's natural gain against generated tokens."""
    base = {**CHAIN, "task": {"kind": "chain", "num_questions": QUESTIONS}}
    uniform = {**CHAIN["targeted"], "uniform_share": 1.0, "continuations_per_node": 7 * 16}
    runs = {
        "screening, 16 rollouts a question": {**base, "rollouts": {**CHAIN["rollouts"], "num_rollouts": 16}},
        "screening, 64 rollouts a question": {**base, "rollouts": {**CHAIN["rollouts"], "num_rollouts": 64}},
        "(a) targeted rollouts, uniform": {**base, "targeted": uniform},
        "targeted rollouts, `target: tokens`": {**base, "target": {"kind": "tokens", "tokens": 60_000}},
    }
    rows: list[list[Any]] = []
    needed: dict[str, dict[str, float]] = {}
    for way, settings in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            function = opdscope.screen if way.startswith("screening") else opdscope.diagnose
            run = function(settings, run_dir=Path(folder) / "run")
            tokens = sum(len(row) for name in ("rollouts", "continuations") for row in run.table(name)["token_ids"].to_pylist())
            teachers = {t["name"]: t for t in opdscope.summarize(run.tables(), run.config).data["teachers"] if not t["is_null"]}
        for name, teacher in teachers.items():
            estimate = teacher["natural_gain"] if way.startswith("screening") else teacher["targeted"]["all"]["natural_gain"]
            cost = tokens * (10 * estimate["standard_error"] / estimate["value"]) ** 2 if estimate["value"] else float("nan")
            needed.setdefault(name, {})[way] = cost
            width = estimate["high"] - estimate["low"]
            rows.append([name, way, f"{tokens:,}", f"{estimate['value']:+.3f} ± {width / 2:.3f}", f"{cost:,.0f}"])
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
