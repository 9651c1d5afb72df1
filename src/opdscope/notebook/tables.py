"""Results as pandas data frames."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from opdscope.errors import ConfigError
from opdscope.summary import Bin

_SCREENED = ("natural_gain", "gain_over_null", "gain", "natural_gain_per_sqrt_kl")
_TARGETED = ("natural_gain", "advantage", "mean_score", "pooled_alignment")


def need(module: str) -> Any:
    """A module of the extra `notebook`.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"this needs {package}, which is not installed; run pip install 'opdscope[notebook]'") from error


def frame(table: pa.Table) -> Any:
    """An Arrow table as a data frame."""
    need("pandas")
    return table.to_pandas()


def teacher_frame(data: Mapping[str, Any]) -> Any:
    """One row per teacher and objective, in the order of the ranking."""
    rows: list[dict[str, Any]] = []
    for teacher in data["teachers"]:
        for objective, numbers in teacher["objectives"].items():
            row = {"teacher": teacher["name"], "objective": objective, "is_null": teacher["is_null"], "verdict": numbers["verdict"]}
            for name in _SCREENED:
                row |= _ends(name, numbers[name])
            for paths, targeted in (numbers.get("targeted") or {}).items():
                for name in _TARGETED:
                    row |= _ends(f"{name}_{paths}_paths", targeted[name])
            rows.append(row | {"null_to_beat": numbers["null_to_beat"]["name"], **teacher["rivals"]})
    return need("pandas").DataFrame(rows)


def bin_frame(along: Mapping[str, Sequence[Bin]], axis: str) -> Any:
    """One row per bin and teacher."""
    if axis not in along:
        known = ", ".join(along) or "none under `protocol: paper`, whose nodes stand for no others"
        raise ConfigError(f"there is no axis {axis!r}; those there are: {known}")
    rows: list[dict[str, Any]] = []
    for bin_ in along[axis]:
        for teacher, gain in bin_.natural_gain.items():
            row: dict[str, Any] = {"teacher": teacher, axis: (bin_.low + bin_.high) / 2, f"{axis}_from": bin_.low, f"{axis}_to": bin_.high}
            row["num_nodes"] = bin_.num_nodes
            row |= _ends("natural_gain", vars(gain)) | _ends("ideal_norm", vars(bin_.ideal_norm))
            rows.append(row)
    return need("pandas").DataFrame(rows)


def _ends(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
