"""Runs side by side: students, checkpoints or tasks, paired by question where questions match."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from opdscope.config import NULL_CONTEXTS, Config, TeacherConfig, differences
from opdscope.core.aggregation import Estimate, clustered_mean, clustered_statistic
from opdscope.core.differences import Difference, paired_difference, simultaneous_differences, unpaired_difference
from opdscope.core.randomness import generator
from opdscope.errors import ConfigError
from opdscope.summary.plain import plain
from opdscope.summary.run_sums import STATISTICS, Key, RunSums, StoredRun, measure_run

QUANTITIES = ("natural_gain", "gain_over_null", "natural_gain_per_sqrt_kl")
"""What is compared of each teacher."""

_PAIRED_FROM = 0.5
"""Two runs are paired on their common questions if these are at least this share of the questions of either."""


def compare_runs(runs: Sequence[StoredRun], objective: str | None = None) -> dict[str, Any]:
    """What two or more runs say of students and of teachers of the same name, side by side, and how they differ.

    A difference is later minus earlier run. It is paired on the questions that both have, if these are at least half of either's questions;
    else each run speaks for its own questions, and shared ones are counted as such. Differences of one quantity hold together at the
    first run's confidence, over all pairs and teachers.

    Args:
        runs: Two or more.
        objective: For which gains and alignments are compared; None takes the first run's first one.

    Returns:
        Plain data under runs, pairs, success, teachers, notes, objective and confidence; undefined numbers are None, and an estimate is a
        mapping with value, low, high, standard_error and num_clusters. A pooled alignment has no standard error, and no difference.

    Raises:
        ConfigError: If the runs cannot be compared: less than two, one given twice, other temperatures, an objective that one lacks.
        RunDirectoryError: If a run holds no scores yet.
    """
    chosen = _require_comparable(runs, objective)
    labels, level = _labels(runs), runs[0].config.analysis.confidence
    measured = [measure_run(run, label, chosen, level) for run, label in zip(runs, labels, strict=True)]
    pairs = [_Pair(first, second) for first, second in combinations(measured, 2)]
    shared, notes = _shared_teachers(measured)
    data = {
        "objective": chosen,
        "confidence": level,
        "runs": [_describe(own, runs[0].config) for own in measured],
        "pairs": [pair.describe() for pair in pairs],
        "success": _differ(pairs, [None], "success", level)[None],
        "teachers": _teachers(measured, pairs, shared, level),
        "notes": [*notes, *_length_note(measured)],
    }
    return plain(data)


def _require_comparable(runs: Sequence[StoredRun], objective: str | None) -> str:
    if len(runs) < 2:
        raise ConfigError(f"comparing takes at least two runs, found {len(runs)}; `opdscope summary RUN` shows a single one")
    paths = [run.path.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} is given twice; a run does not differ from itself")
    first = runs[0]
    for run in runs[1:]:
        if run.config.rollouts.temperature != first.config.rollouts.temperature:
            raise ConfigError(
                f"{run.path} samples at temperature {run.config.rollouts.temperature:g} and {first.path} at "
                f"{first.config.rollouts.temperature:g}: their policies, and so their gains, are not the same kind of number; compare runs "
                "of one temperature"
            )
    chosen = objective or first.config.objectives[0]
    for run in runs:
        if chosen not in run.config.objectives:
            common = [name for name in first.config.objectives if all(name in other.config.objectives for other in runs)]
            hint = f"choose one that all have with --objective: {', '.join(common)}" if common else "they have no objective in common"
            raise ConfigError(f"{run.path} has no objective {chosen!r} (it has {', '.join(run.config.objectives)}); {hint}")
    return chosen


def _labels(runs: Sequence[StoredRun]) -> list[str]:
    """Names of the directories; whole paths where two have the same."""
    names = [run.path.name for run in runs]
    return [str(run.path) if names.count(run.path.name) > 1 else run.path.name for run in runs]


class _Pair:
    """Two runs, their questions in one order, and whether these are paired."""

    def __init__(self, first: RunSums, second: RunSums) -> None:
        self.first, self.second = first, second
        self._keys = list(dict.fromkeys([*first.keys, *second.keys]))
        both = set(first.keys) & set(second.keys)
        self.num_shared = len(both)
        self.paired = len(both) >= 2 and len(both) >= _PAIRED_FROM * max(len(set(first.keys)), len(set(second.keys)))
        self._place = {key: i for i, key in enumerate(self._keys)}

    def difference(self, teacher: str | None, quantity: str, union: Sequence[Key]) -> Difference | None:
        """The difference of a quantity, its influences about `union`; None where a run lacks the quantity."""
        first, second = (self._rows(run, teacher, quantity) for run in (self.first, self.second))
        if first is None or second is None:
            return None
        made = (paired_difference if self.paired else unpaired_difference)(first, second, STATISTICS[quantity])
        place = {key: i for i, key in enumerate(union)}
        influence = np.zeros(len(union))
        influence[[place[key] for key in self._keys]] = made.influence
        return Difference(made.value, influence, made.freedom, made.num_clusters)

    def _rows(self, run: RunSums, teacher: str | None, quantity: str) -> Float[np.ndarray, "question component"] | None:
        own = run.success if teacher is None else run.sums.get((teacher, quantity))
        if own is None:
            return None
        rows = np.full((len(self._keys), own.shape[1]), np.nan)
        rows[[self._place[key] for key in run.keys]] = own
        return rows

    def describe(self) -> dict[str, Any]:
        """How the two runs belong together."""
        first, second = self.first.label, self.second.label
        sizes = {"num_shared": self.num_shared, "num_first": len(self.first.keys), "num_second": len(self.second.keys)}
        return {"first": first, "second": second, "pairing": "paired" if self.paired else "unpaired", **sizes}


def _differ(pairs: Sequence[_Pair], teachers: Sequence[str | None], quantity: str, level: float) -> dict[str | None, list[dict[str, Any]]]:
    """Every difference of one quantity by teacher, with intervals that hold together."""
    union = list(dict.fromkeys(key for pair in pairs for run in (pair.first, pair.second) for key in run.keys))
    made = [(t, pair, pair.difference(t, quantity, union)) for t in teachers for pair in pairs]
    kept = [(t, pair, difference) for t, pair, difference in made if difference is not None]
    intervals = simultaneous_differences([d for _, _, d in kept], level, generator(pairs[0].first.config.seed, "compare", quantity))
    found: dict[str | None, list[dict[str, Any]]] = {teacher: [] for teacher in teachers}
    for (teacher, pair, _), interval in zip(kept, intervals, strict=True):
        decided = interval.low > 0 or interval.high < 0
        found[teacher].append({"first": pair.first.label, "second": pair.second.label, "difference": interval, "decided": decided})
    return found


def _shared_teachers(measured: Sequence[RunSums]) -> tuple[list[str], list[str]]:
    """Teachers that at least two runs have under one name and one context, nulls included; and what is to be said of the others."""
    names = list(dict.fromkeys(name for run in measured for name, quantity in run.sums if quantity == "natural_gain"))
    kept: list[str] = []
    notes: list[str] = []
    for name in names:
        specs = {run.label: _spec(run.config, name) for run in measured if (name, "natural_gain") in run.sums}
        contexts = {label: "plain" if spec is None else spec.privileged_context for label, spec in specs.items()}
        if len(specs) < 2:
            notes.append(f"only {next(iter(specs))} has a teacher {name!r}")
        elif len(set(contexts.values())) > 1:
            notes.append(f"{name!r} is left out: it is shown {', '.join(f'{kind!r} in {label}' for label, kind in contexts.items())}")
        else:
            kept.append(name)
            models = {label: "student" if spec is None else spec.teacher_model_name_or_path or "student" for label, spec in specs.items()}
            if len(set(models.values())) > 1:
                notes.append(f"{name!r} is not the same model: {', '.join(f'{model} in {label}' for label, model in models.items())}")
    return kept, notes


def _spec(config: Config, name: str) -> TeacherConfig | None:
    return next((teacher for teacher in config.teachers if teacher.name == name), None)


def _teachers(measured: Sequence[RunSums], pairs: Sequence[_Pair], names: Sequence[str], level: float) -> list[dict[str, Any]]:
    found = {quantity: _differ(pairs, names, quantity, level) for quantity in QUANTITIES} if names else {}
    result: list[dict[str, Any]] = []
    for name in names:
        specs = [_spec(run.config, name) for run in measured]
        is_null = all(spec is None or spec.privileged_context in NULL_CONTEXTS for spec in specs)
        values = [_values(run, name, level) for run in measured if (name, "natural_gain") in run.sums]
        result.append({"name": name, "is_null": is_null, "runs": values, "differences": {q: by[name] for q, by in found.items()}})
    # the real ones first, as the first run ranks them
    return sorted(result, key=lambda teacher: (teacher["is_null"], *_falling(teacher["runs"][0]["gain_over_null"])))


def _falling(estimate: Estimate | None) -> tuple[bool, float]:
    undefined = estimate is None or np.isnan(estimate.value)
    return undefined, 0.0 if estimate is None else -estimate.value


def _values(run: RunSums, name: str, level: float) -> dict[str, Any]:
    numbers: dict[str, Estimate | None] = dict.fromkeys(QUANTITIES)
    for quantity in QUANTITIES:
        sums = run.sums.get((name, quantity))
        if sums is not None:
            plain = quantity in ("natural_gain", "gain_over_null")
            numbers[quantity] = clustered_mean(sums[:, 0], level) if plain else clustered_statistic(sums, STATISTICS[quantity], level)
    return {"run": run.label, **numbers, "pooled_alignment": run.pooled.get(name), "verdict": run.verdicts.get(name, "null")}


def _describe(run: RunSums, reference: Config) -> dict[str, Any]:
    return {
        "run": run.label,
        "name": run.config.name,
        "student": run.config.student.model_name_or_path,
        "task": run.config.task.kind,
        "num_questions": len(run.keys),
        "success": clustered_mean(run.success[:, 0], reference.analysis.confidence),
        "differs_from_first": differences(reference.identity(), run.config.identity()),
    }


def _length_note(measured: Sequence[RunSums]) -> list[str]:
    limits = {run.label: run.config.rollouts.max_completion_length for run in measured}
    if len(set(limits.values())) == 1:
        return []
    listed = ", ".join(f"{limit} tokens in {label}" for label, limit in limits.items())
    return [f"responses are cut at {listed}: what is cut counts as wrong, so a part of a difference may be the limit's"]
