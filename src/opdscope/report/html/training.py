"""What the report of a watched training run shows, as plain data. No number is made here but the ends of intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from scipy.stats import norm

from opdscope.report.inert import inert_data
from opdscope.summary.plain import plain

_SERIES = {
    "success": "success of the student's own rollouts",
    "natural_gain": "natural gain of a response",
    "gain_over_null": "gain over the null (the student sharpened or flattened) of a response",
}
"""Those with intervals, and their titles."""
_PROBED = ("success_change", "advantage")
"""What a probe has besides."""
_TRENDS = {"reverse_kl": "reverse KL, nats a response", "entropy": "entropy, nats a token", "length": "length, tokens"}


def training_view(tables: Mapping[str, pa.Table], name: str, confidence: float) -> dict[str, Any]:
    """The data of a watched run's report; what is not finite is None.

    Args:
        tables: Of :data:`opdscope.records.TRAINING_SCHEMAS`, by name; `training_steps` has a row.
        name: How the run is called.
        confidence: Level of the intervals of live numbers, in (0, 1).
    """
    steps, z = tables["training_steps"].to_pylist(), float(norm.ppf(0.5 + confidence / 2))
    last = steps[-1]
    bins = [row for row in tables["training_bins"].to_pylist() if row["step"] == last["step"]]
    view = {
        "name": name,
        "confidence": confidence,
        "last": last,
        "first_step": steps[0]["step"],
        "series": [{"name": key, "title": title, "points": _points(steps, key, z)} for key, title in _SERIES.items()],
        "trends": [{"name": key, "title": title, "points": [_point(row, row[key]) for row in steps]} for key, title in _TRENDS.items()],
        "bins": [
            {"axis": axis, "rows": [_bin(row, z) for row in bins if row["axis"] == axis]}
            for axis in dict.fromkeys(row["axis"] for row in bins)
        ],
        "probes": [
            {
                "step": row["step"],
                "teacher": row["teacher"],
                **{key: {"value": row[key], "low": row[f"{key}_low"], "high": row[f"{key}_high"]} for key in (*_SERIES, *_PROBED)},
            }
            for row in tables["training_probes"].to_pylist()
        ],
        "actions": tables["training_actions"].to_pylist(),
    }
    return inert_data(plain(view))


def _points(steps: Sequence[Mapping[str, Any]], key: str, z: float) -> list[dict[str, Any]]:
    halves = [z * row[f"{key}_error"] for row in steps]
    return [{**_point(row, row[key]), "low": row[key] - half, "high": row[key] + half} for row, half in zip(steps, halves, strict=True)]


def _point(row: Mapping[str, Any], value: float) -> dict[str, Any]:
    return {"step": row["step"], "value": value}


def _bin(row: Mapping[str, Any], z: float) -> dict[str, Any]:
    place = f"from {row['low']:g}" if math.isinf(row["high"]) else f"{row['low']:g}–{row['high']:g}"
    gain, half = row["natural_gain"], z * row["natural_gain_error"]
    return {"name": place, "num_tokens": row["num_tokens"], "gain": {"value": gain, "low": gain - half, "high": gain + half}}
