"""The allocator itself: time and memory for many nodes, and its share of a run's time."""

import contextlib
import itertools
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from page import Section

import opdscope
from opdscope.core.allocation import allocate_tokens
from opdscope.pipeline import looks
from opdscope.pipeline.importance import PositionImportance
from opdscope.pipeline.rounds import Rounds

_RUNS = 7
"""Of each target: on a busy machine one run says little."""

CHAIN: dict[str, Any] = {
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [
        {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"},
        {"name": "solution", "privileged_context": "solution"},
    ],
    "task": {"kind": "chain", "num_questions": 8},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 32, "num_demonstrations": 2, "max_completion_length": 48},
    "targeted": {"paths_per_outcome": 2, "nodes_per_path": 6},
    "engine": {"device": "cpu"},
}


def scaling() -> Section:
    """Time and memory of one allocation."""
    rng = np.random.default_rng(0)
    rows: list[list[Any]] = []
    peaks: list[float] = []
    for nodes in (1_000, 10_000, 100_000):
        size = nodes * 10
        arrays = rng.normal(size=size), rng.uniform(0.01, 0.25, size=size), np.full(size, 2), rng.uniform(1, 100, size=size)
        started = time.process_time()
        allocate_tokens(*arrays, 100.0 * size)
        seconds = time.process_time() - started
        tracemalloc.start()
        allocate_tokens(*arrays, 100.0 * size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        rows.append([f"{nodes:,}", f"{seconds:.2f}", f"{peaks[-1] / 1e6:.1f}"])
    checks = [
        (
            "memory is linear: ten times the nodes, at most eleven times the memory",
            all(b <= 11 * a for a, b in itertools.pairwise(peaks)),
        )
    ]
    return Section(
        "The allocator: 10 candidates a node",
        "Processor seconds of one plan, and its peak memory.",
        ["nodes", "seconds", "MB"],
        rows,
        checks,
    )


@contextlib.contextmanager
def deciding() -> Iterator[list[float]]:
    """Seconds of every decision of a run, taken where it is made: whether another look is taken, where nodes are drawn, what a round draws."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                seconds.append(time.perf_counter() - started)

        return call

    decisions: list[tuple[Any, str]] = [
        (looks, "_goes_on"),
        (PositionImportance, "__init__"),
        (PositionImportance, "weights"),
        (Rounds, "plan"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name in decisions:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        yield seconds


def _one_share(name: str, target: dict[str, Any]) -> tuple[int, float, float]:
    """Tokens of a run, and its seconds of generating and of deciding."""
    with tempfile.TemporaryDirectory() as folder:
        with deciding() as seconds:
            run = opdscope.diagnose({**CHAIN, "target": target}, run_dir=Path(folder) / "run")
        stages = ("rollouts", "screening") if name == "rank" else ("nodes", "pilot", "continuations")
        took = sum(entry["seconds"] for entry in run.times() if entry["stage"].startswith(stages))
        tokens = sum(entry["num_tokens"] for entry in run.times() if entry["stage"].startswith(stages[1:]))
    return tokens, took, sum(seconds)


def share() -> Section:
    """Of a real transformer's diagnosis: what deciding takes beside what generating takes."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    targets: dict[str, dict[str, Any]] = {"rank": {"kind": "rank"}, "map": {"kind": "map", "width": 0.2}}
    for name, target in targets.items():
        found = [_one_share(name, target) for _ in range(_RUNS)]
        middle = sorted(found, key=lambda one: one[2] / one[1])[_RUNS // 2]
        tokens, took, decided = middle
        rows.append([name, f"{tokens:,}", f"{took:.2f}", f"{decided:.3f}", f"{decided / took:.1%}"])
        checks.append((f"{name}: deciding takes under 2 % of the time of generating and scoring", decided < 0.02 * took))
    text = (
        "The embedded chain transformer, 8 questions; wall-clock seconds of generating and of scoring what is decided about, and of all "
        "decisions, reading the "
        f"run directory included; of {_RUNS} runs the one in the middle by its share. Deciding does not grow with the model: on a model a thousand "
        "times as large its share is a thousand times smaller."
    )
    return Section("The allocator: share of a real run", text, ["target", "tokens", "generating, s", "deciding, s", "share"], rows, checks)
