"""What differs between two configurations, in words."""

import json
from typing import Any


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """One text a setting that differs, such as `rollouts.temperature was 1.0, now 0.7`.

    Args:
        before: Plain data, for example :meth:`opdscope.config.Config.identity`.
        after: Plain data of the same layout.
        where: Dotted path of the two.

    Example:
        >>> differences({"task": {"seed": 0}}, {"task": {"seed": 1}})
        ['task.seed was 0, now 1']
    """
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        return [text for key in keys for text in differences(before.get(key), after.get(key), f"{where}.{key}" if where else str(key))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [text for i, (x, y) in enumerate(zip(before, after, strict=True)) for text in differences(x, y, f"{where}.{i}")]
    return [] if before == after else [f"{where} was {_short(before)}, now {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
