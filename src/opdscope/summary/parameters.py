"""Gain and alignment in the student's parameters, from stored sketches of the gradients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.config import Config
from opdscope.core.parameters import parameter_alignment
from opdscope.summary.paths import list_arrays


def parameter_alignments(tables: Mapping[str, pa.Table], config: Config) -> list[dict[str, Any]] | None:
    """Per teacher and objective, nulls included: parameter gain and alignment; None if no gradient is stored.

    A group of questions for which a teacher has no context at all counts as a group without push.
    """
    table = tables["parameter_gradients"]
    if table.num_rows == 0:
        return None
    rows = table.select(["group", "teacher", "objective", "num_parameters"]).to_pylist()
    groups = sorted({row["group"] for row in rows})
    found: dict[tuple[str, str], Float[np.ndarray, "group coordinate"]] = {}
    for row, own in zip(rows, list_arrays(table["coordinates"]), strict=True):
        sketches = found.setdefault((row["teacher"], row["objective"]), np.zeros((len(groups), len(own))))
        sketches[groups.index(row["group"])] = own
    ideal = found.pop(("", ""))
    folded = rows[0]["num_parameters"] > ideal.shape[1]
    error = 1.0 / np.sqrt(ideal.shape[1]) if folded else 0.0
    result: list[dict[str, Any]] = []
    for (teacher, objective), push in found.items():
        numbers = parameter_alignment(ideal, push, config.analysis.confidence, error)
        result.append({"teacher": teacher, "objective": objective, "gain": numbers.gain, "alignment": numbers.alignment})
    return result
