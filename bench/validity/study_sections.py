"""Tables of the studies: weights over time, order of questions, and rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from correlation import seed_mean
from page import Section
from record_names import CURRICULUM, RULES, SCHEDULE, SHUFFLED, TOKENS, UNWEIGHTED, WEIGHTED, WEIGHTS
from run_records import Records

_FALL, _LEAST_HEALTHY = -0.02, 20


def study_sections(records: Records) -> list[Section]:
    """All sections that have runs."""
    found = [
        _compared(records, WEIGHTS),
        _compared(records, SCHEDULE),
        _compared(records, CURRICULUM),
        _token_weights(records),
        _stopped(records),
        _healthy(records),
    ]
    return [section for section in found if section is not None]


_TEXTS = {
    WEIGHTS: (
        "Dynamic weight against fixed ones",
        "A teacher that knows one false rule, 40 steps. The weight is a factor of the learning rate; the dynamic one is halved by a rule of the "
        "live monitor whenever the gain is surely not above its null's. The difference is to the best fixed weight, paired by seed; the best is "
        "chosen by hindsight, which favours it.",
    ),
    SCHEDULE: (
        "A recipe's schedule against fixed weights",
        "The strong teacher, 60 steps. A schedule follows the live gain over null and the room left, each as a share of what it was at the diagnosis "
        "(`core/schedule.py`). The difference is to the best fixed weight, paired by seed; the best is chosen by hindsight, which favours it.",
    ),
    CURRICULUM: (
        "Curriculum against shuffled questions",
        "The same questions in another order, by each question's screening gain from 8 rollouts; 24 steps. The difference is to the shuffled "
        "order, paired by seed.",
    ),
}


def _compared(records: Records, study: str) -> Section | None:
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for row in records.rows(study):
        arms.setdefault(row["arm"], {})[row["seed"]] = row
    if len(arms) < 2:
        return None
    base = (
        SHUFFLED
        if study == CURRICULUM
        else max((arm for arm in arms if arm.startswith("fixed")), key=lambda arm: _mean(arms[arm]), default="")
    )
    if base not in arms:
        return None
    table = [
        [arm, len(runs), _with_interval([run["change"] for run in runs.values()]), _paired(runs, arms[base])] for arm, runs in arms.items()
    ]
    title, text = _TEXTS[study]
    return Section(title, text + " Intervals are Student's, 95 %.", ["arm", "seeds", "change of success", f"minus {base}"], table)


def _token_weights(records: Records) -> Section | None:
    by: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for row in records.rows(TOKENS):
        by.setdefault(row["configuration"], {}).setdefault(row["arm"], {})[row["seed"]] = row
    table: list[list[Any]] = []
    for name, arms in by.items():
        if len(arms) < 2:
            continue
        plain, weighted = arms[UNWEIGHTED], arms[WEIGHTED]
        first = next(iter(weighted.values()))
        value, low, high = first["predicted"]
        changes = [_with_interval([run["change"] for run in runs.values()]) for runs in (plain, weighted)]
        bins = ", ".join(f"{weight:.2f}" for weight in first["weights"])
        predicted = f"{value:+.3f} ({low:+.3f} – {high:+.3f})"
        table.append([name.replace(" | ", " · "), first["feature"], bins, predicted, len(weighted), *changes, _paired(weighted, plain)])
    if not table:
        return None
    text = (
        "Weights by the token feature that promises most in a diagnosis of the starting student, as a recipe has them, from the lowest to "
        "the highest fifth of "
        "the push by that feature; 32 steps of 32 questions that the diagnosis did not see. *Foretold*: held-out gain per size of the push "
        "with weights minus "
        "without, 90 %. The last column is paired by seed; its intervals are Student's, 95 %."
    )
    head = ["configuration", "weights by", "weights", "foretold", "seeds", "change without", "change with", "with minus without"]
    return Section("Token weights of a recipe against none", text, head, table)


def _mean(runs: Mapping[int, Mapping[str, Any]]) -> float:
    return float(np.mean([run["change"] for run in runs.values()]))


def _with_interval(values: Sequence[float]) -> str:
    found = seed_mean(values)
    low, high = found.interval
    return f"{found.value:+.3f}" + (f" ({low:+.3f} – {high:+.3f})" if found.num_seeds > 1 else "")


def _paired(runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> str:
    common = sorted(set(runs) & set(base))
    return _with_interval([runs[seed]["change"] - base[seed]["change"] for seed in common]) if common and runs is not base else "—"


def _stopped(records: Records) -> Section | None:
    rows = [row for row in records.rows(RULES) if row["trace"]]
    if not rows:
        return None
    table: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for row in rows:
        first = row["actions"][0] if row["actions"] else None
        trace = [(0, 0.0), *((int(step), float(change)) for step, change in row["trace"])]
        upto = [change for step, change in trace if first is not None and step <= first["step"]]
        fell = next((step for step, change in trace if change <= _FALL), None)
        at = f"{upto[-1]:+.3f}" if upto else "—"
        below_best = f"{upto[-1] - max(upto):+.3f}" if upto else "—"
        ok = first is not None and upto[-1] > _FALL
        collapses = fell is not None
        table.append(
            [
                row["arm"].removeprefix("collapse: "), row["seed"], "—" if first is None else f"{first['step']}, {first['rule']}", at, below_best,
                "—" if fell is None else fell, f"{row['change']:+.3f}",
            ]
        )  # fmt: skip
        if collapses:
            checks.append((f"{row['arm']}, seed {row['seed']}: stopped at {at} of held-out success", ok))
    text = (
        "The rules of bench/validity/studies.py report at every second step and never stop these runs, so that the whole course is seen. Held-out "
        "success is measured at the same steps on 1,024 questions, paired with the start (standard error about 0.01). Goal: stopped before success "
        "is 2 points below the start."
    )
    names = [
        "run",
        "seed",
        "would stop at step, rule",
        "change there",
        "below its best there",
        "2 points lost at step",
        "change at the end",
    ]
    return Section("Runs that collapse", text, names, table, checks)


def _healthy(records: Records) -> Section | None:
    rows = [row for row in records.rows(RULES) if row["arm"] == "healthy"]
    if not rows:
        return None
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["configuration"], []).append(row)
    table = [
        [name.replace(" | ", " · "), len(runs), sum(bool(run["actions"]) for run in runs), _with_interval([run["change"] for run in runs])]
        for name, runs in by.items()
    ]
    alarms = sum(bool(row["actions"]) for row in rows)
    share = max(row["monitor_share"] for row in rows)
    checks = [
        (
            f"{alarms} of {len(rows)} healthy runs would have been stopped, goal 0 of at least {_LEAST_HEALTHY}",
            alarms == 0 and len(rows) >= _LEAST_HEALTHY,
        )
    ]
    text = f"The same rules on runs that gain. The free monitor took at most {share:.1%} of the training time."
    return Section("Healthy runs", text, ["configuration", "runs", "false alarms", "change of success"], table, checks)
