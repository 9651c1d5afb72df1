"""Results as plain data that JSON knows."""

import json
import math
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Plain data: dataclasses as mappings, numpy numbers as Python's, and what is not finite as None.

    Example:
        >>> plain({"gain": np.float64("nan"), 2: (np.int64(1),)})
        {'gain': None, '2': [1]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def as_json(data: Any) -> str:
    """Plain data as JSON text, keys in their order."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
