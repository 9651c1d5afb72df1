"""Writes what a watched run says: to the trainer's own log, and as Parquet into a directory that `opdscope watch` reads."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdscope.records import to_table
from opdscope.store import TrainingLog

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
        self._written = time.monotonic()

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """A row of a table; it is written with the next :meth:`write`."""
        self._rows.setdefault(name, []).append(row)

    def write(self, step: int, now: bool = False) -> None:
        """Write what waits, if it has waited for long enough or has to be written now."""
        if not self._rows or (not now and time.monotonic() - self._written < _SECONDS_BETWEEN_WRITES):
            return
        for name, rows in self._rows.items():
            self.log.write(name, step, to_table(name, rows))
        self._rows, self._written = {}, time.monotonic()


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
