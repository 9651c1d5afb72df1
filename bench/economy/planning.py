"""What rounds gain by their plan: Neyman's rule and controls, each switched off and on in whole runs of the pipeline."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from nodes import Exact, measured
from page import Section
from ranking import config
from worlds import TASKS, WORLDS

import opdscope

SWITCHES: dict[str, dict[str, bool]] = {
    "the same number for every stratum": {"neyman_allocation": False},
    "Neyman's rule (default)": {},
    "Neyman's rule and controls": {"score_continuations": True},
}
WIDTH = 0.3
BUDGETS = {"chains": 250_000, "tree": 12_000}
"""Tokens: about what the map takes."""


def planning(num_questions: int, repetitions: int) -> Section:
    """A map and a budget of tokens, by the pipeline."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for world in WORLDS:
        targets: list[dict[str, Any]] = [{"kind": "map", "width": WIDTH}, {"kind": "tokens", "tokens": BUDGETS[world]}]
        for target in targets:
            label = f"map, width {target['width']:g}" if target["kind"] == "map" else f"{target['tokens']:,} tokens"
            spent: list[float] = []
            for way, switches in SWITCHES.items():
                found = np.array([_measured(world, num_questions, target, switches, seed) for seed in range(repetitions)])
                tokens, narrow, held, squared = found.mean(axis=0)
                error = 4 * found[:, 2].std(ddof=1) / np.sqrt(repetitions)
                reached = f"{narrow:.0%}" if target["kind"] == "map" else ""
                rows.append([world, label, way, f"{tokens:,.0f}", reached, f"{squared:.1e}", f"{held:.1%}", f"± {error:.1%}"])
                if target["kind"] == "map" and not switches:
                    checks.append((f"{world}, {label}: nine in ten intervals are within a tenth of the width", bool(narrow >= 0.9)))
                if target["kind"] == "map" and "score_continuations" in switches:
                    checks.append((f"{world}, {label}: with controls it takes fewer tokens", bool(tokens < spent[-1])))
                spent.append(float(tokens))
    text = (
        f"{repetitions} runs of {num_questions} questions a row, six teachers, backed up; natural gains of single nodes in deviations of the signal, "
        "nodes at which every token settles the outcome left out. *Within*: intervals no wider than a tenth above the width that was asked for. "
        "*Error*: mean squared error, which Neyman's rule lowers for a budget and leaves where it is for a width. *Coverage*: of 90 % intervals, "
        "with four Monte Carlo errors. A budget of tokens is spent on means over questions and not on single nodes, whose error it may leave larger "
        "than even numbers do. A map serves the teacher that needs most at each node. Controls foretell one share of the variance for all nodes of a "
        "question: where they take out less, a map's intervals are wider than was asked for. In the tree these teachers foretell outcomes to the "
        "last digit: an upper end and no promise."
    )
    head = ["world", "target", "plan", "tokens", "within", "error", "coverage", "error of it"]
    return Section("Rounds: what planning brings", text, head, rows, checks)


def _measured(world: str, num_questions: int, target: dict[str, Any], switches: dict[str, bool], seed: int) -> tuple[float, ...]:
    """Tokens of continuations, share of intervals that are narrow enough, share that hold, mean squared error."""
    task = {**TASKS[world], "num_questions": num_questions}
    with tempfile.TemporaryDirectory() as folder:
        run = opdscope.diagnose(config(task, targeted=switches, target=target, seed=seed), run_dir=Path(folder) / "run")
        exact = Exact(run, WORLDS[world])
        tokens = sum(map(len, run.table("continuations")["token_ids"].to_pylist()))
    gains, truth, use = measured(exact)[1], exact.gains(exact.success), exact.pushed & ~exact.certain
    narrow = (gains[..., 2] - gains[..., 1])[use] <= 1.1 * target.get("width", np.inf)
    held = ((gains[..., 1] <= truth) & (truth <= gains[..., 2]))[use]
    return float(tokens), float(narrow.mean()), float(held.mean()), float(np.mean((gains[..., 0] - truth)[use] ** 2))
