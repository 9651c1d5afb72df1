"""Tables of the runs that were watched with a probe set: when rules would have stopped them, and what is left where they did."""

from collections.abc import Mapping, Sequence
from typing import Any

from correlation import seed_mean
from page import Section
from record_names import BUDGET, COLLAPSE, HEALTHY, STOPPED
from replay import CAUTIOUS, WATCHFUL, first_stop
from run_records import Records

_FALL, _LEAST_HEALTHY = -0.02, 20
_RULES = {"watchful": WATCHFUL, "cautious": CAUTIOUS}
_WHAT = (
    "256 rollouts a step, the learning rate warmed up over 8 steps, 32 steps. The probe set has 512 questions with 4 rollouts each; its "
    "first probe, before "
    "training, makes targeted rollouts, the others, every 4 steps, measure success alone. *Watchful* rules stop where the push surely harms, "
    "or success on "
    "the probe set is surely below its start or its best; *cautious* ones also where the teacher's own tokens surely succeed less often than "
    "the student's "
    "(teacher advantage below zero)."
)


def collapse_sections(records: Records) -> list[Section]:
    """All sections that have runs."""
    whole, stopped = records.rows(COLLAPSE), records.rows(STOPPED)
    collapsing = [row for row in whole if row["arm"] != HEALTHY]
    healthy = [row for row in whole if row["arm"] == HEALTHY]
    found = [_collapsing(collapsing)] if collapsing else []
    found += [_stopped(stopped)] if stopped else []
    found += [_healthy(healthy)] if healthy else []
    budgets = records.rows(BUDGET)
    return found + ([_budgets(budgets)] if budgets else [])


def _collapsing(rows: Sequence[Mapping[str, Any]]) -> Section:
    table: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for row in rows:
        trace = [(0, 0.0), *((int(step), float(change)) for step, change in row["trace"])]
        fell = next((step for step, change in trace if change <= _FALL), None)
        cells: list[Any] = []
        for name, rules in _RULES.items():
            stop = first_stop(row["readings"], rules)
            at = None if stop is None else max((point for point in trace if point[0] <= stop[0]), key=lambda point: point[0])[1]
            cells += ["—" if stop is None else f"{stop[0]}, {stop[1]}", "—" if at is None else f"{at:+.3f}"]
            if fell is not None:
                label = f"{row['arm']}, seed {row['seed']}, {name}: stopped at {cells[-1]} of held-out success, goal above {_FALL:+.2f}"
                checks.append((label, at is not None and at > _FALL))
        highest = max(change for _, change in trace)
        table.append([row["arm"], row["seed"], *cells, "—" if fell is None else fell, f"{highest:+.3f}", f"{row['change']:+.3f}"])
    text = (
        f"{_WHAT} The rules only report, so that the whole course is seen. Held-out success is measured at the same steps on 1,024 questions, "
        f"paired with "
        "the start (standard error about 0.01). Goal: stopped before success is 2 points below the start."
    )
    head = [
        "run",
        "seed",
        *(cell for name in _RULES for cell in (f"{name}: step, rule", "change there")),
        "2 points lost at step",
        "best",
        "at the end",
    ]
    return Section("Runs that collapse, with a probe set", text, head, table, checks)


def _stopped(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = [
        [row["arm"], row["seed"], row["steps"], f"{row['change']:+.3f} ± {row['change_error']:.3f}", f"{row['best_change']:+.3f}"]
        for row in rows
    ]
    lost = [row for row in rows if min(row["change"], row["best_change"]) <= _FALL]
    checks = [(f"{len(lost)} of {len(rows)} runs end, or keep weights, 2 points or more below their start, goal 0", not lost)]
    text = (
        "The same runs again with cautious rules that act. A trainer that is stopped before its first step takes that step with a learning "
        "rate of zero. "
        "*Kept*: the weights of the best probe."
    )
    return Section(
        "The same, stopped", text, ["run", "seed", "steps taken", "change at the end", "change of the kept weights"], table, checks
    )


def _healthy(rows: Sequence[Mapping[str, Any]]) -> Section:
    by: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["configuration"], []).append(row)
    alarms = {name: [first_stop(row["readings"], rules) for row in rows] for name, rules in _RULES.items()}
    table: list[list[Any]] = []
    for name, runs in by.items():
        counts = [sum(first_stop(run["readings"], rules) is not None for run in runs) for rules in _RULES.values()]
        change = seed_mean([run["change"] for run in runs])
        table.append([name.replace(" | ", " · "), len(runs), *counts, f"{change.value:+.3f}"])
    checks: list[tuple[str, bool]] = []
    for name, found in alarms.items():
        count = sum(stop is not None for stop in found)
        label = f"{name}: {count} of {len(rows)} healthy runs would have been stopped, goal 0 of at least {_LEAST_HEALTHY}"
        checks.append((label, count == 0 and len(rows) >= _LEAST_HEALTHY))
    monitor, probes = max(row["monitor_share"] for row in rows), max(row["probe_share"] for row in rows)
    text = (
        f"The same rules on runs that gain. The free monitor took at most {monitor:.1%} of the training time; the probes, whose budget was "
        f"left open here, "
        f"at most {probes:.0%}: they draw 2,048 rollouts every 1,024, since these trainings are over in half a minute."
    )
    head = ["configuration", "runs", *(f"false alarms, {name}" for name in _RULES), "change of success"]
    return Section("Healthy runs, with a probe set", text, head, table, checks)


def _budgets(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = [
        [
            f"{row['budget']:.0%}", row["measure"], f"{row['first_seconds']:.1f} s", f"{row['probes']} of {row['asked']}",
            f"{row['probe_share']:.1%}", f"{row['monitor_share']:.1%}", f"{row['seconds']:.0f} s",
        ]
        for row in rows
    ]  # fmt: skip
    within = sum(row["probe_share"] <= row["budget"] or row["probes"] == 1 for row in rows)
    monitor = max(row["monitor_share"] for row in rows)
    checks = [
        (f"no probe but the first was taken beyond the budget in {within} of {len(rows)} runs, goal all", within == len(rows)),
        (f"free monitor: at most {monitor:.2%} of the training, goal below 2 %", monitor < 0.02),
    ]
    text = (
        "How much of a whole training probes take where they are asked for more often than their budget allows: the weak chain student and "
        f"the strong teacher, {rows[0]['steps']} steps of 32 rollouts, a probe of 64 questions with 4 rollouts each asked for every 4 "
        "steps. Timed from outside the probe set: all that happens in it, as a share of the whole call of `train`. The first probe, before "
        "training, is taken whatever it costs, so that a training shorter than its cost over the budget goes beyond it; the next ones wait "
        "until the share allows them."
    )
    head = [
        "budget",
        "a probe measures",
        "first probe",
        "probes taken, of those asked for",
        "share of the time",
        "free monitor",
        "training",
    ]
    return Section("Probes and their budget", text, head, table, checks)
