"""Ordinary rollouts in looks: as many as the order of the teachers needs, where that is the target; else all at once."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from opdscope.config import Config
from opdscope.pipeline.experiment import Experiment
from opdscope.records import Role, to_table
from opdscope.store import Run
from opdscope.summary.looks import Seen, order_of, planned_looks
from opdscope.summary.paths import list_lengths
from opdscope.summary.responses import READ, READ_FITTED


@dataclass(frozen=True)
class Look:
    """Measured rollouts of every question that are drawn and scored before the next decision."""

    start: int
    """Index of the first one."""
    stop: int
    """Index after the last one."""
    prefix: str
    """Of the names of its units."""

    def stage(self, name: str) -> str:
        """What people call a stage of this look."""
        return f"{name} to {self.stop}" if self.prefix else name


def looks(experiment: Experiment) -> Generator[Look]:
    """The looks that are to be taken, each to be finished before the next one is asked for; it depends on what is stored alone.

    A further look is taken while the order of the top teachers is not settled, and there is room for it in the budget.
    """
    sizes = planned_looks(experiment.config)
    if experiment.config.target.kind != "rank":
        yield Look(0, sizes[-1], "")
        return
    seen = Seen()
    for index, (start, stop) in enumerate(zip((0, *sizes), sizes, strict=False)):
        if index > 0 and not _goes_on(experiment, index, stop, seen):
            return
        yield Look(start, stop, f"{index:03d}-")


def _goes_on(experiment: Experiment, index: int, stop: int, seen: Seen) -> bool:
    config, run = experiment.config, experiment.run
    sizes = planned_looks(config)
    tables = {name: run.table(name, columns) for name, columns in (READ_FITTED if config.analysis.fitted_values else READ).items()}
    spent = _measured_tokens(tables["rollouts"], sizes[index - 1])
    a_rollout = spent / sizes[index - 1]
    order = order_of(tables, config, seen)
    # what rollouts have cost so far foretells what the next ones will
    limit = _limit(config, a_rollout, _took(run) / sizes[index - 1])
    if index == 1 and not run.has("forecasts", "rollouts"):
        allowed = max(size for size in sizes if size <= max(limit, sizes[0]))
        foretold = min(order.foretell() if order is not None else sizes[-1], allowed) * a_rollout
        run.write("forecasts", "rollouts", to_table("forecasts", [{"stage": "rollouts", "tokens": foretold, "pilot_tokens": spent}]))
    return (order is None or bool(order.undecided)) and stop <= limit


def _limit(config: Config, tokens: float, seconds: float) -> float:
    """Rollouts of every question that may be drawn, where one takes so many tokens and seconds."""
    target = config.target
    allowed = [(target.tokens, tokens), (target.seconds, seconds)]
    return min((limit / each for limit, each in allowed if limit is not None and each > 0), default=np.inf)


def _took(run: Run) -> float:
    """Seconds of ordinary rollouts and their scoring."""
    return sum(entry["seconds"] for entry in run.times() if entry["stage"].startswith(("rollouts", "screening")))


def _measured_tokens(rollouts: pa.Table, stop: int) -> int:
    """Of the measured rollouts before an index."""
    measured = np.array([role == Role.MEASURED for role in rollouts["role"].to_pylist()], dtype=bool)
    lengths = list_lengths(rollouts["token_ids"])
    return int(np.sum(lengths[measured & (rollouts["rollout_index"].to_numpy() < stop)]))
