"""Which teacher comes first, which are told apart, and what is said of each: decisions that hold together, however many teachers there are."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_mean
from opdscope.summary.looks import Screening, joint_width, over_null
from opdscope.summary.teachers import null_of


def rank(teachers: Sequence[Mapping[str, Any]], looks: Sequence[Screening], config: Config) -> list[dict[str, Any]]:
    """The teachers by gain over null for the first objective, undefined ones last, each with its verdict and its distance from the first."""
    ranked = sorted((dict(teacher) for teacher in teachers), key=_rank_key)
    real = [teacher["name"] for teacher in ranked if not teacher["is_null"]]
    differences = {(d["first"], d["second"]): d["difference"] for d in compare(real, looks, config)}
    for objective in config.objectives:
        words = verdicts(real, looks, objective, config)
        for teacher in ranked:
            teacher["objectives"][objective]["verdict"] = words.get(teacher["name"], "null")
    for teacher in ranked:
        teacher["verdict"] = teacher["objectives"][config.objectives[0]]["verdict"]
        teacher["behind_first"] = differences.get((real[0], teacher["name"])) if real else None
    return ranked


def compare(names: Sequence[str], looks: Sequence[Screening], config: Config) -> list[dict[str, Any]]:
    """Every two of these teachers in order: the paired difference of their gains over null, on the questions that both have.

    All intervals hold together at the configured confidence, those of earlier looks included. `decided` is true where the interval excludes zero.
    """
    objective = config.objectives[0]
    pairs = list(combinations(names, 2))
    if not pairs:
        return []

    def differences(screening: Screening) -> np.ndarray:
        over = {name: over_null(screening, name, objective, config) for name in names}
        return np.stack([over[first] - over[second] for first, second in pairs], axis=-1)

    values, width = differences(looks[-1]), joint_width([differences(look) for look in looks], config, "comparisons")
    found: list[dict[str, Any]] = []
    for (first, second), column in zip(pairs, values.T, strict=True):
        difference = clustered_mean(column, config.analysis.confidence, width)
        decided = difference.low > 0 or difference.high < 0
        found.append({"first": first, "second": second, "difference": difference, "decided": decided})
    return found


def verdicts(names: Sequence[str], looks: Sequence[Screening], objective: str, config: Config) -> dict[str, str]:
    """What can be said of each of these teachers; the verdicts hold together at the configured confidence.

    Returns:
        `helps`: gains, also beyond its null. `harms`: lowers success. `null does better`, `null does as well`: gains, but no more than
        could be had without it. `null not beaten`: gains, and may or may not gain more than its null. `does not help`: gains less than
        `analysis.smallest_gain` beyond its null. `undecided`: more rollouts are needed.
    """
    if not names:
        return {}
    level = config.analysis.confidence

    def numbers(screening: Screening) -> np.ndarray:
        gains = [screening[name, objective].natural_gain for name in names]
        return np.stack([*gains, *(over_null(screening, name, objective, config) for name in names)], axis=-1)

    values, width = numbers(looks[-1]), joint_width([numbers(look) for look in looks], config, "verdicts", objective)
    words: dict[str, str] = {}
    for k, name in enumerate(names):
        gain, beyond = (clustered_mean(values[:, i], level, width) for i in (k, len(names) + k))
        null = null_of(looks[-1], name, objective, config).name
        words[name] = verdict_word(gain, beyond, null is not None, config.analysis.smallest_gain)
    return words


def verdict_word(gain: Estimate, over_null: Estimate, has_null: bool, smallest: float) -> str:
    """The verdict on one teacher, in the words of :func:`verdicts`.

    Args:
        gain: Natural gain.
        over_null: The same minus its null's.
        has_null: Whether there is a null with a positive gain.
        smallest: Least gain over null that would be of use.
    """
    if gain.high < 0:
        return "harms"
    if gain.low > 0 and over_null.low > 0 and over_null.high >= smallest:
        return "helps"
    if over_null.high < smallest and has_null and gain.low > 0:
        return "null does better" if over_null.high < 0 else "null does as well"
    if over_null.high < smallest:
        return "does not help"
    return "null not beaten" if has_null and gain.low > 0 else "undecided"


def _rank_key(teacher: Mapping[str, Any]) -> tuple[bool, float]:
    value = teacher["gain_over_null"].value
    return math.isnan(value), -value


def verdict(ranked: Sequence[Mapping[str, Any]], student: Mapping[str, Any]) -> dict[str, str]:
    """The headline of a run, as a kind and a sentence."""
    outcomes = student["outcomes"]
    right, wrong = outcomes["correct"], outcomes["incorrect"] + outcomes["truncated"]
    if right + wrong == 0:
        return {"kind": "nothing to measure", "text": "There is nothing to measure: no response could be verified."}
    if right == 0 or wrong == 0:
        kind, remedy = ("right", "harder") if wrong == 0 else ("wrong", "easier")
        text = f"There is nothing to measure: all {right + wrong} verified rollouts are {kind}. Choose {remedy} questions."
        return {"kind": "nothing to measure", "text": text}
    real = [teacher for teacher in ranked if not teacher["is_null"]]
    if all(math.isnan(teacher["gain_over_null"].value) for teacher in real):
        text = "There is nothing to say of any teacher: no gain over null is defined. Are its scores finite, and had it a context anywhere?"
        return {"kind": "undefined", "text": text}
    helping = [teacher for teacher in real if teacher["verdict"] == "helps"]
    if helping:
        first = helping[0]
        rivals = [t["name"] for t in real if t is not first and not (t["behind_first"] is not None and t["behind_first"].low > 0)]
        tie = f"; not told apart from it: {', '.join(rivals)}" if rivals else ""
        return {"kind": "helps", "text": f"{first['name']} helps most, beyond what a teacher that knows nothing would{tie}."}
    if any(teacher["verdict"].startswith("null ") for teacher in real):
        return {"kind": "null", "text": "No teacher is shown to beat its null: sharpening or flattening the student would do."}
    if all(teacher["verdict"] in ("harms", "does not help") for teacher in real):
        return {"kind": "no teacher helps", "text": "No teacher helps here: none raises the chance of success beyond its null."}
    return {
        "kind": "undecided",
        "text": "No teacher is shown to help here; the intervals still reach zero. More rollouts would narrow them.",
    }
