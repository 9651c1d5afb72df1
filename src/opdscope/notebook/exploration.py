"""What one types in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from opdscope.errors import RunDirectoryError
from opdscope.notebook import plots, tables
from opdscope.notebook.display import run_html
from opdscope.store import Run, open_run
from opdscope.summary import Chains, Summary, measure_chains, node_scores, summarize


def explore(run: Run | str | Path) -> Exploration:
    """A run to look at.

    Args:
        run: A run, or its directory.

    Raises:
        RunDirectoryError: If the path is not a run directory.
    """
    return Exploration(run if isinstance(run, Run) else open_run(run))


class Exploration:
    """A stored run with its numbers; each is made when it is first asked for, by the functions that make the report's.

    Tables are pandas data frames, plots matplotlib axes. In a notebook the object shows the verdict and the ranking.
    """

    def __init__(self, run: Run) -> None:
        """Look at a run."""
        self.run = run
        """Where the numbers come from; `run.table(name)` gives what is stored."""

    @cached_property
    def _tables(self) -> Mapping[str, pa.Table]:
        found = self.run.tables()
        if not found["scores"].num_rows:
            raise RunDirectoryError(f"{self.run.path} holds no scores yet; run the same diagnosis again, it resumes")
        return found

    @cached_property
    def summary(self) -> Summary:
        """Everything that the run says, as `opdscope summary --json` has it."""
        return summarize(self._tables, self.run.config, self.run.times())

    @cached_property
    def _chains(self) -> Chains:
        chains = measure_chains(self._tables, self.run.config)
        if chains is None:
            raise RunDirectoryError(
                f"{self.run.path} has no targeted rollouts, so nothing is known of places; `opdscope diagnose` draws them"
            )
        return chains

    def teachers(self) -> Any:
        """One row per teacher and objective: gains with the ends of their intervals, targeted averages, verdict, rivals."""
        return tables.teacher_frame(self.summary.data)

    def scores(self) -> Any:
        """One row per measured node, teacher and objective, as :func:`opdscope.node_scores` has it, with the ends of every interval.

        Raises:
            RunDirectoryError: If the run has no targeted rollouts.
        """
        found = node_scores(self._tables, self.run.config)
        if not found.num_rows:
            raise RunDirectoryError(f"{self.run.path} has no targeted rollouts, so no node has scores; `opdscope diagnose` draws them")
        return tables.frame(found)

    def strata(self) -> Any:
        """One row per node and candidate: how often it succeeded, with the ends of its interval.

        Raises:
            RunDirectoryError: If the run has no targeted rollouts.
        """
        return tables.frame(self._chains.strata)

    def along(self, axis: str = "depth") -> Any:
        """One row per bin and teacher: mean natural gain of a token and ‖g*‖, with the ends of their intervals.

        Args:
            axis: `depth`, `entropy` or `difficulty`.

        Raises:
            RunDirectoryError: If the run has no targeted rollouts.
            ConfigError: If there is no such axis.
        """
        return tables.bin_frame(self._chains.along, axis)

    def plot_teachers(self, ax: Any = None) -> Any:
        """Gain over null and natural gain of every teacher with their intervals, nulls below."""
        return plots.plot_teachers(self.summary.data, ax)

    def plot_split(self, ax: Any = None) -> Any:
        """Natural gain on correct and on incorrect paths.

        Raises:
            RunDirectoryError: If the run has no targeted rollouts.
        """
        _ = self._chains
        return plots.plot_split(self.summary.data, ax)

    def plot_depth(self, ax: Any = None) -> Any:
        """Mean natural gain of a token against its position in the response."""
        return plots.plot_along(self.along("depth"), "depth", self._real_teachers, ax)

    def plot_entropy(self, ax: Any = None) -> Any:
        """Mean natural gain of a token against the student's entropy there."""
        return plots.plot_along(self.along("entropy"), "entropy", self._real_teachers, ax)

    def plot_difficulty(self, ax: Any = None) -> Any:
        """Mean natural gain of a token against the student's success on the question."""
        return plots.plot_along(self.along("difficulty"), "difficulty", self._real_teachers, ax)

    @property
    def _real_teachers(self) -> list[str]:
        return [teacher["name"] for teacher in self.summary.data["teachers"] if not teacher["is_null"]]

    def _repr_html_(self) -> str:
        """The verdict, the ranking and what must stand beside it."""
        return run_html(self.summary.data, self.run.path)

    def __repr__(self) -> str:
        """The run and its verdict."""
        return f"Exploration({str(self.run.path)!r}: {self.summary.data['verdict']['text']})"
