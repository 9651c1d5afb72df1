"""A run that goes on from a checkpoint: what rules and schedule had made of it, and how good the kept weights are, read from its record."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opdscope.store import TrainingLog


@dataclass(frozen=True)
class Resumed:
    """Where a watched run stood."""

    objective: str
    """Name of its objective; empty where the record says nothing."""
    context: str
    """Name of its context; empty likewise."""
    weight: float | None
    """Its distillation weight; None likewise."""
    acted: Mapping[str, int]
    """How often each rule has acted."""
    best: float
    """Success of the kept weights, as the probe set or the rollouts saw it; minus infinity where none were kept."""


def read_resumed(log: TrainingLog, has_probe: bool, z: float) -> Resumed:
    """The state at the end of a record.

    Args:
        log: The record, up to the checkpoint.
        has_probe: Whether a probe set judges which weights are the best.
        z: Half width of the probe's intervals in standard errors.
    """
    steps = log.table("training_steps").to_pylist()
    actions = [row for row in log.table("training_actions").to_pylist() if not row["dry"]]
    last: dict[str, Any] = steps[-1] if steps else {"step": -1, "objective": "", "context": "", "distillation_weight": None}
    found: dict[str, Any] = {name: last[name] for name in ("objective", "context", "distillation_weight")}
    for row in actions:
        if row["step"] >= last["step"]:  # a row of steps is written before the rules are looked at
            found.update(_done(row))
    probes = {row["step"]: row for row in log.table("training_probes").to_pylist()}.values()
    judged = (
        ((row["success_change"], (row["success_change_high"] - row["success_change_low"]) / 2 / z) for row in probes)
        if has_probe
        else ((row["success"], row["success_error"]) for row in steps)
    )
    weight = found["distillation_weight"]
    acted = Counter(row["rule"] for row in actions)
    return Resumed(found["objective"], found["context"], None if weight is None else float(weight), acted, best_of(judged))


def best_of(judged: Iterable[tuple[float, float]], best: float = -math.inf) -> float:
    """Success of the weights that would have been kept: those that beat the kept ones by more than their own standard error.

    Example:
        >>> best_of([(0.5, 0.1), (0.55, 0.1), (0.7, 0.1)])
        0.7
    """
    for success, error in judged:
        best = success if success - error > best else best
    return best


def _done(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an action changed."""
    if row["action"].endswith("_weight"):
        return {"distillation_weight": row["after"]}
    return {row["action"].removeprefix("switch_"): row["after"]} if row["action"].startswith("switch_") else {}
