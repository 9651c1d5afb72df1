"""How far continuations that share random numbers go together, read from a run."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from opdscope.config import Config
from opdscope.core.controlled import Controlled
from opdscope.core.coupling import Coupling, estimate_coupling
from opdscope.records import Outcome


def read_coupling(tables: Mapping[str, pa.Table], config: Config, controlled: Controlled | None = None) -> Coupling | None:
    """Estimated from all stored continuations; None where each has random numbers of its own.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
        controlled: Outcomes less their controls, one for each row of the table; None: they have none.
    """
    settings = config.targeted
    if config.protocol != "default" or not (settings.common_random_numbers or settings.antithetic):
        return None
    found: dict[str, dict[tuple[int, int], float]] = {}
    columns = ["node_id", "stratum", "continuation_index", "outcome"]
    rows = tables["continuations"].select(columns).to_pylist()
    values = [float(row["outcome"] == Outcome.CORRECT) for row in rows] if controlled is None else controlled.outcomes.tolist()
    for row, value in zip(rows, values, strict=True):
        if row["outcome"] != Outcome.UNVERIFIABLE:
            found.setdefault(row["node_id"], {})[row["stratum"], row["continuation_index"]] = value
    outcomes: list[np.ndarray] = []
    for own in found.values():
        array = np.full((1 + max(j for j, _ in own), 1 + max(k for _, k in own)), np.nan)
        for place, outcome in own.items():
            array[place] = outcome
        outcomes.append(array)
    pushes = _pushes(tables)
    weights = [pushes.get(node_id, np.zeros(0)) for node_id in found]
    weights = [np.pad(own, (0, max(len(array) - len(own), 0)))[: len(array)] for own, array in zip(weights, outcomes, strict=True)]
    kept = None
    if controlled is not None:
        of_node = dict(zip((row["node_id"] for row in rows), controlled.kept.tolist(), strict=True))
        kept = np.array([of_node[node_id] for node_id in found])
    return estimate_coupling(outcomes, weights, pairs=settings.antithetic, across=settings.common_random_numbers, kept=kept)


def _pushes(tables: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
    """What the strata of each node weigh in natural gains: root mean square over teachers, each in units of its push over all nodes."""
    probs: dict[str, list[float]] = {}
    for row in tables["strata"].select(["node_id", "student_prob"]).to_pylist():
        probs.setdefault(row["node_id"], []).append(row["student_prob"])
    signals = tables["node_signals"].select(["node_id", "teacher", "objective", "signal", "signal_variance"]).to_pylist()
    scale: dict[tuple[str, str], float] = {}
    for row in signals:
        if np.isfinite(row["signal_variance"]):
            key = row["teacher"], row["objective"]
            scale[key] = scale.get(key, 0.0) + row["signal_variance"]
    squares: dict[str, np.ndarray] = {}
    for row in signals:
        own, signal, push = np.array(probs[row["node_id"]]), np.array(row["signal"]), scale.get((row["teacher"], row["objective"]), 0.0)
        if push > 0 and np.isfinite(signal).all():
            squares.setdefault(row["node_id"], np.zeros(len(own)))
            squares[row["node_id"]] += (own * (signal - np.sum(own * signal))) ** 2 / push
    return {node_id: np.sqrt(own) for node_id, own in squares.items()}
