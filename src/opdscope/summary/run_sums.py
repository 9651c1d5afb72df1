"""A run reduced to sums by question, so that it can be held against another one question by question."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.aggregation import Estimate, pooled_cosine, ratio
from opdscope.core.differences import Statistic
from opdscope.errors import RunDirectoryError
from opdscope.summary.looks import screen_looks
from opdscope.summary.measures import measure_nodes
from opdscope.summary.nodes import node_posterior, read_nodes
from opdscope.summary.ranking import verdicts
from opdscope.summary.teachers import (
    null_of,
    path_shares,
    per_push,
    push_sums,
    question_success,
)

STATISTICS: dict[str, Statistic] = {
    "success": ratio, "natural_gain": ratio, "gain_over_null": ratio, "natural_gain_per_sqrt_kl": per_push,
}  # fmt: skip
"""From totals over questions to each quantity."""

Key = tuple[str, ...]
"""What makes a question the same in two runs."""


class StoredRun(Protocol):
    """What is needed of a run: :class:`opdscope.store.Run`."""

    @property
    def path(self) -> Path:
        """Its directory."""
        ...

    @property
    def config(self) -> Config:
        """Its configuration."""
        ...

    def tables(self) -> Mapping[str, pa.Table]:
        """Every table by name."""
        ...


@dataclass(frozen=True)
class RunSums:
    """One run, reduced to sums by question: whatever is compared is a statistic of these."""

    label: str
    """What it is called in tables."""
    config: Config
    """Its configuration."""
    keys: list[Key]
    """Its questions, in order."""
    success: Float[np.ndarray, "question 2"]
    """Share of correct rollouts and 1 by question; NaN where nothing could be verified."""
    sums: dict[tuple[str, str], Float[np.ndarray, "question component"]]
    """By teacher and quantity, rows in the order of `keys`; NaN where undefined."""
    pooled: dict[str, Estimate]
    """Pooled alignment by teacher."""
    verdicts: dict[str, str]
    """What the run alone says of each real teacher."""


def measure_run(run: StoredRun, label: str, objective: str, level: float) -> RunSums:
    """Everything that is compared of one run, for one objective and level of confidence.

    Raises:
        RunDirectoryError: If it holds no scores yet.
    """
    tables, config = run.tables(), run.config
    if not tables["scores"].num_rows:
        raise RunDirectoryError(f"{run.path} holds no scores yet, so there is nothing to compare; run the same diagnosis again, it resumes")
    looks = screen_looks(tables, config)
    screening = looks[-1]
    names = [name for name, own in screening if own == objective]
    sums: dict[tuple[str, str], Float[np.ndarray, "question component"]] = {}
    for name in names:
        own = screening[name, objective]
        over = own.natural_gain - null_of(screening, name, objective, config).natural_gain
        sums[name, "natural_gain"], sums[name, "gain_over_null"] = _with_count(own.natural_gain), _with_count(over)
        sums[name, "natural_gain_per_sqrt_kl"] = push_sums(own)
    real = [teacher.name for teacher in config.teachers if teacher.name in names and teacher.privileged_context not in NULL_CONTEXTS]
    questions = tables["questions"].select(["question_id", "text", "answer"]).to_pylist()
    pooled = _pooled(tables, config, objective, level)
    success = np.array(list(question_success(tables).values()))
    keys = [(*_world(config), row["text"], row["answer"]) for row in questions]
    words = verdicts(real, looks, objective, config)
    return RunSums(label, config, keys, _with_count(success), sums, pooled, words)


def _world(config: Config) -> Key:
    """What questions of the same text must share to be the same: the questions of an exact world are mere numbers."""
    task = config.task
    rules = task.model_dump_json(exclude={"num_questions"}) if task.kind == "exact" else ""
    return (task.kind if task.kind in ("exact", "chain", "addition") else "text", rules)


def _with_count(values: Float[np.ndarray, "question"]) -> Float[np.ndarray, "question 2"]:
    return np.stack([values, np.where(np.isnan(values), np.nan, 1.0)], axis=-1)


def _pooled(tables: Mapping[str, pa.Table], config: Config, objective: str, level: float) -> dict[str, Estimate]:
    """Each teacher's pooled alignment; empty without targeted rollouts of the default kind."""
    nodes = read_nodes(tables)
    if not nodes.rows or config.protocol != "default":
        return {}
    posterior, signals = node_posterior(tables, nodes, config), tables["node_signals"]
    chosen = signals.filter(pa.array([name == objective for name in signals["objective"].to_pylist()], pa.bool_()))
    pooled: dict[str, Estimate] = {}
    for own in measure_nodes({**tables, "node_signals": chosen}, nodes, posterior, config):
        sums = path_shares(own, nodes, "all").sums(own.gain[:, 0], posterior.ideal_squared_norm[own.index], own.gradient_squared_norm)
        pooled[own.teacher] = pooled_cosine(sums, level)
    return pooled
