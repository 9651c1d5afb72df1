"""Rules, and when they would have acted on what a run's watching has recorded; needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import norm

from opdscope.training.rules import RuleBook, load_rules

_Z = float(norm.ppf(0.95))


def _stop(name: str, series: str, **condition: Any) -> dict[str, Any]:
    return {"name": name, "series": series, "evaluations": 1, **condition, "then": {"action": "stop"}}


WATCHFUL: Mapping[str, Any] = {
    "every": 4,
    "least_rollouts": 1024,
    "rules": [
        _stop("the push harms", "probe.natural_gain", below=0.0),
        _stop("success has fallen", "probe.success_change", below=0.0),
        _stop("success falls", "probe.success_change", falls_by=0.0),
        _stop("the live push harms", "natural_gain", below=0.0, evaluations=2),
    ],
}
"""Stop where the push surely harms, or success on the probe set is surely below its start or its best."""
CAUTIOUS: Mapping[str, Any] = {**WATCHFUL, "rules": [_stop("the way ends badly", "probe.advantage", below=0.0), *WATCHFUL["rules"]]}
"""And where the teacher's own tokens surely succeed less often than the student's."""


def first_stop(readings: Sequence[Mapping[str, Any]], rules: Mapping[str, Any]) -> tuple[int, str] | None:
    """Step and rule of the first action on recorded readings; None if there is none."""
    book = RuleBook(load_rules(rules))
    for reading in readings:
        seen = reading["num_rollouts"] >= book.config.least_rollouts
        series = {
            name: tuple(value) if len(value) == 2 else (value[0], (value[2] - value[1]) / 2 / _Z)
            for name, value in reading.items()
            if name not in ("step", "num_rollouts") and (seen or name.startswith("probe."))
        }
        decision = book.decide(series)
        if decision is not None:
            return reading["step"], decision.rule.name
    return None
