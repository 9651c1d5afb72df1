"""Writes what a watched run says: to the trainer's own log, and as Parquet into a directory that `opdscope watch` reads."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opdscope.records import to_table
from opdscope.store import TrainingLog
from opdscope.training.monitor import Reading

_SECONDS_BETWEEN_WRITES = 2.0
"""Rows wait for so long at most while training goes on: a file is synced to disk, which takes milliseconds."""

PREFIX = "opdscope/"
"""Of every name in the trainer's log."""


class Recorder:
    """Rows by table, written in parts now and then."""

    def __init__(self, path: str | Path) -> None:
        self.log = TrainingLog(path)
        """Where the parts go."""
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        self._kept: tuple[int, dict[str, list[Mapping[str, Any]]]] = (-1, {})
        self._written = time.monotonic()

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """A row of a table; it is written with the next :meth:`write`."""
        self._rows.setdefault(name, []).append(row)

    def write(self, step: int, now: bool = False) -> None:
        """Write what waits, if it has waited for long enough or has to be written now."""
        if not self._rows or (not now and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES):
            return
        if self._kept[0] == step:  # a part is named by its step: what it holds already is written again with the rest
            self._rows = {name: [*self._kept[1].get(name, []), *self._rows.get(name, [])] for name in {**self._kept[1], **self._rows}}
        for name, rows in self._rows.items():
            self.log.write(name, step, to_table(name, rows))
        self._kept, self._rows, self._written = (step, self._rows), {}, time.monotonic()


def log_metrics(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Hand numbers to the trainer's own log, under `opdscope/…`; what is not finite is left out.

    TRL's trainers average what they collect and log it with their next line; the others are asked to log at once.
    """
    finite = {PREFIX + name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    collected = getattr(trainer, "_metrics", None)
    if isinstance(collected, dict) and "train" in collected:
        for name, value in finite.items():
            collected["train"][name].append(value)
    elif finite:
        trainer.log(finite)


def reading_rows(step: int, reading: Reading, state: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A reading as rows of `training_steps` and `training_bins`, with the table's name.

    Args:
        step: Optimizer step.
        reading: Of the monitor.
        state: Columns that the monitor does not know: objective, context, distillation_weight, monitor_share.
    """
    yield "training_steps", {"step": step, **state, **{name: value for name, value in vars(reading).items() if name != "bins"}}
    for axis, low, high, gain, error, tokens in reading.bins:
        yield (
            "training_bins",
            {"step": step, "axis": axis, "low": low, "high": high, "natural_gain": gain, "natural_gain_error": error, "num_tokens": tokens},
        )


def reading_metrics(reading: Reading, state: Mapping[str, Any]) -> dict[str, float]:
    """The same as numbers for a trainer's log."""
    numbers = {name: value for name, value in {**vars(reading), **state}.items() if isinstance(value, int | float)}
    return {**numbers, **{f"natural_gain/{axis}_{low:g}_{high:g}": gain for axis, low, high, gain, _, _ in reading.bins}}


def probe_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of `training_probes` as numbers for a trainer's log: the student's under `probe/…`, a teacher's under `probe/TEACHER/…`."""
    own = {f"probe/{name}": row[name] for name in ("success", "success_change")}
    names = ("natural_gain", "gain_over_null", "advantage", "pooled_alignment")
    return {**own, **{f"probe/{row['teacher']}/{name}": row[name] for name in names if row["teacher"]}}
