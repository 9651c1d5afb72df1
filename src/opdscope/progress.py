"""Progress of the stages for people, with an honest ETA: bars on a terminal, lines elsewhere."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Bars:
    """Progress of the stages on a terminal; the pipeline's watcher."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._num_tokens = 0

    def start(self, stage: str, total: int, done: int) -> None:
        """A new bar; what an earlier session finished does not count towards the speed."""
        self._num_tokens = 0
        self._task = self._progress.add_task(stage, total=total, completed=done, speed="")

    def tokens(self, num_tokens: int) -> None:
        """Show tokens per second."""
        self._num_tokens += num_tokens
        elapsed = self._progress.tasks[-1].elapsed if self._progress.tasks else None
        if elapsed and self._task is not None:
            self._progress.update(self._task, speed=f"{self._num_tokens / elapsed:,.0f} tokens/s")

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._progress.console.print(text)


class _Lines:
    """Progress where there is no terminal, in the log of a job for example: a line when work is stored, at most every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._total, self._done, self._begun_with, self._num_tokens = "", 0, 0, 0, 0
        self._started = self._printed = 0.0

    def start(self, stage: str, total: int, done: int) -> None:
        """What an earlier session finished does not count towards the speed."""
        self._stage, self._total, self._done, self._begun_with = stage, total, done, done
        self._num_tokens, self._started = 0, time.monotonic()
        self._printed = self._started

    def tokens(self, num_tokens: int) -> None:
        """Count."""
        self._num_tokens += num_tokens

    def advance(self, amount: int) -> None:
        """Print where the stage is."""
        self._done += amount
        now = time.monotonic()
        if self._done < self._total and now - self._printed < 10:
            return
        self._printed, elapsed = now, now - self._started
        left = elapsed * (self._total - self._done) / (self._done - self._begun_with)
        times = f"{timedelta(seconds=round(elapsed))}, ETA {timedelta(seconds=round(left))}, {self._num_tokens / elapsed:,.0f} tokens/s"
        self._console.print(f"{self._stage}: {self._done} of {self._total}, {times}", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print."""
        self._console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def watching(quiet: bool) -> Generator[Any]:
    """A watcher of the pipeline for standard error: bars on a terminal, lines elsewhere, nothing if it is to be quiet."""
    from opdscope.pipeline import Silent

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Silent() if quiet else _Lines(console)
        return
    columns = [
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    ]
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        yield _Bars(progress)
