"""Predictions beside realised changes, one row per configuration and step size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from configurations import CONFIGURATIONS, FURTHER, SEEDS, STEP_SIZES, Configuration
from record_names import GRID, grid_key
from run_records import Records

PREDICTIONS = (
    "targeted gain", "targeted gain / √KL", "targeted pooled alignment", "screening gain", "screening gain / √KL",
    "screening pooled alignment", "parameter alignment", "parameter alignment + accuracy gap",
    "targeted advantage",
)  # fmt: skip
"""What opdscope says."""
RIVALS = (
    "accuracy gap", "log-odds value", "entropy gap", "reverse kl", "forward kl", "jensen shannon", "overlap", "overlap advantage", "rare mass",
)  # fmt: skip
"""What is had for free."""


@dataclass(frozen=True)
class Row:
    """One configuration at one step size."""

    configuration: Configuration
    predicted: Mapping[str, float]
    change: float
    """Mean over seeds of the change of success on held-out questions."""
    error: float
    """Its standard error: the larger of what the questions and what the seeds say."""
    num_seeds: int


def read_rows(records: Records, predictions: Mapping[str, Any], step_size: str) -> list[Row]:
    """Every configuration that has a prediction and at least one finished run."""
    found: list[Row] = []
    for configuration in CONFIGURATIONS + FURTHER:
        keys = [grid_key(configuration, step_size, seed) for seed in SEEDS]
        runs = [records[key] for key in keys if key in records]
        if runs and configuration.name in predictions:
            changes = np.array([run["change"] for run in runs])
            of_questions = float(np.sqrt(np.sum([run["change_error"] ** 2 for run in runs])) / len(runs))
            of_seeds = float(changes.std(ddof=1) / np.sqrt(len(runs))) if len(runs) > 1 else 0.0
            error = max(of_questions, of_seeds)
            predicted = dict(predictions[configuration.name])
            predicted["parameter alignment + accuracy gap"] = predicted["parameter alignment"] + predicted["accuracy gap"]
            found.append(Row(configuration, predicted, float(changes.mean()), error, len(runs)))
    return found


def columns(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted, realised, and the realised error."""
    return (
        np.array([row.predicted[name] for row in rows], dtype=float),
        np.array([row.change for row in rows]),
        np.array([row.error for row in rows]),
    )


def spent(records: Records) -> dict[str, float]:
    """Runs and hours of the grid."""
    rows = records.rows(GRID)
    seconds = sum(row["training_seconds"] for row in rows)
    return {"runs": len(rows), "training_hours": seconds / 3600, "step_sizes": len(STEP_SIZES)}
