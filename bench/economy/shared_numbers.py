"""Common random numbers and antithetic pairs as the pipeline draws them: what they bring where, and whether intervals know of it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from allocator import CHAIN
from nodes import Exact, measured
from page import Section
from ranking import config
from worlds import TASKS, WORLDS

import opdscope
from opdscope.config import Config
from opdscope.records import Outcome
from opdscope.store import Run
from opdscope.summary.nodes import read_nodes
from opdscope.summary.shared_numbers import read_coupling

WAYS: dict[str, dict[str, bool]] = {
    "common random numbers across candidates": {"common_random_numbers": True},
    "antithetic pairs": {"antithetic": True},
    "both": {"common_random_numbers": True, "antithetic": True},
}
PER_STRATUM = 64
"""Continuations of every stratum where effects are measured: equal numbers, so that all are matched."""


def effects(num_questions: int) -> Section:
    """Variance of a node's natural gain with each way of sharing, relative to independent continuations."""
    few = {**CHAIN, "rollouts": {**CHAIN["rollouts"], "num_rollouts": 16}}
    sources = {name: config(task) for name, task in TASKS.items()} | {"embedded transformer, chain": few}
    rows: list[list[Any]] = []
    for name, base in sources.items():
        apart = _unit_variance(_piloted(base, num_questions, {})[0], 1)
        for way, switches in WAYS.items():
            tables, settings = _piloted(base, num_questions, switches)
            coupling = read_coupling(tables, settings)
            assert coupling is not None
            ratio = apart / _unit_variance(tables, 2 if "antithetic" in switches else 1)
            rows.append([name, way, f"{ratio:.2f}×", f"{coupling.across:+.2f}", f"{coupling.pair:+.2f}", f"{1 / coupling.contrast:.2f}×"])
    text = (
        f"{num_questions} questions; the nodes that the pipeline draws, {PER_STRATUM} continuations of every candidate and tail. *Economy*: variance "
        "of the nodes' natural gains (reverse KL, summed over nodes and teachers in units of each teacher's push) relative to independent "
        "continuations of the same nodes. *Correlations* are those that the summary estimates: of outcomes of one index after different candidates, "
        "and within an antithetic pair; *by them*: what they say of a difference between candidates."
    )
    head = ["source", "technique", "economy", "across candidates", "within a pair", "by them"]
    return Section("Techniques: shared random numbers", text, head, rows)


def _piloted(base: dict[str, Any], num_questions: int, switches: dict[str, bool]) -> tuple[dict[str, Any], Config]:
    """A run that ends with its pilot, as tables, and its configuration."""
    targeted = {**base.get("targeted", {}), "min_continuations": PER_STRATUM, **switches}
    settings = {
        **base,
        "task": {**base["task"], "num_questions": num_questions},
        "targeted": targeted,
        "target": {"kind": "tokens", "tokens": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        run: Run = opdscope.diagnose(settings, run_dir=Path(folder) / "run")
        return dict(run.tables()), run.config


def _unit_variance(tables: dict[str, Any], size: int) -> float:
    """Variance, times `size`, of what so many matched continuations of every stratum say of a natural gain, summed over nodes and teachers."""
    nodes = read_nodes(tables)
    index = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    outcomes = np.zeros((*nodes.probs.shape, PER_STRATUM))
    for row in tables["continuations"].select(["node_id", "stratum", "continuation_index", "outcome"]).to_pylist():
        outcomes[index[row["node_id"]], row["stratum"], row["continuation_index"]] = row["outcome"] == Outcome.CORRECT
    units = outcomes.reshape(*nodes.probs.shape, PER_STRATUM // size, size).mean(axis=-1)
    total: dict[str, list[float]] = {}
    for row in tables["node_signals"].to_pylist():
        i = index[row["node_id"]]
        signal = np.zeros(nodes.probs.shape[1])
        signal[: len(row["signal"])] = row["signal"]
        weights = nodes.probs[i] * (signal - np.sum(nodes.probs[i] * signal))
        own = total.setdefault(row["teacher"], [0.0, 0.0])
        own[0] += size * float(np.var(weights @ units[i], ddof=1))
        own[1] += row["signal_variance"]
    return sum(variance / push for variance, push in total.values() if push > 0)


def coverage(num_questions: int, repetitions: int) -> Section:
    """Intervals of single nodes with both switches on, and their errors with and without."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name, task in TASKS.items():
        for way, switches in {"independent": {}, **WAYS}.items():
            found = np.array([_held(name, {**task, "num_questions": num_questions}, switches, seed) for seed in range(repetitions)])
            (held, squared, half), error = found.mean(axis=0), 4 * found[:, 0].std(ddof=1) / np.sqrt(repetitions)
            if way == "independent":
                base = squared
            rows.append([name, way, f"{held:.1%}", f"± {error:.1%}", f"{half:.3f}", f"{base / squared:.2f}×"])
            checks.append((f"{name}, {way}: 88–92 %", 0.88 - error <= held <= 0.92 + error))
    text = (
        f"{repetitions} runs of the same {num_questions} questions a row, by the pipeline with 32 continuations a node, backed up. 90 % intervals "
        "of each node's natural gain in deviations of the signal, six teachers, nodes at which every token settles the outcome left out; their mean "
        "half width; and the squared error of the estimates relative to independent continuations. Counts differ from candidate to candidate here, "
        "so that not all continuations are matched. The error is four of the Monte Carlo error over runs."
    )
    head = ["world", "continuations", "coverage", "error", "half width", "economy"]
    return Section("Shared random numbers: coverage", text, head, rows, checks)


def _held(name: str, task: dict[str, Any], switches: dict[str, bool], seed: int) -> tuple[float, float, float]:
    """Share of intervals that hold, mean squared error, and mean half width."""
    with tempfile.TemporaryDirectory() as folder:
        run = opdscope.diagnose(config(task, targeted=switches, seed=seed), run_dir=Path(folder) / "run")
        exact = Exact(run, WORLDS[name])
    gains, truth, use = measured(exact)[1], exact.gains(exact.success), exact.pushed & ~exact.certain
    held = ((gains[..., 1] <= truth) & (truth <= gains[..., 2]))[use]
    return float(held.mean()), float(np.mean((gains[..., 0] - truth)[use] ** 2)), float(np.mean((gains[..., 2] - gains[..., 1])[use] / 2))
