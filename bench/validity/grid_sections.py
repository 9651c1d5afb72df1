"""Tables of the main grid: rank correlations, signs, every configuration, where it fails, and outcome filters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from configurations import EXCESSIVE, GENTLE, SEEDS, STEP_SIZES, STUDENTS
from correlation import CONFIDENCE, clustered_spearman, paired_advantage, sign_agreement, spearman
from outcomes_table import PREDICTIONS, RIVALS, Row, columns, read_rows
from page import Section, fixed
from run_records import Records
from scipy import stats

_GOAL_CORRELATION, _GOAL_SIGNS = 0.9, 0.95
_BEST = "targeted pooled alignment"
"""What rivals are compared with: the gain per size of the push, since Adam gives every update the same size."""


def grid_sections(records: Records, predictions: Mapping[str, Any], num_resamples: int = 1000) -> list[Section]:
    """All sections, at every step size that has runs."""
    by_size = {size: read_rows(records, predictions, size) for size in (GENTLE, *STEP_SIZES, EXCESSIVE)}
    by_size = {size: rows for size, rows in by_size.items() if len(rows) >= 8}
    if not by_size:
        return []
    return [
        _correlations(by_size, num_resamples),
        *(section(by_size) for section in (_within, _signs, _together, _failures, _filters, _every)),
    ]


def _correlations(by_size: Mapping[str, Sequence[Row]], num_resamples: int) -> Section:
    table: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    best_rival: dict[str, float] = {}
    for name in (*PREDICTIONS, *RIVALS):
        cells: list[str] = []
        for size, rows in by_size.items():
            predicted, realised, _ = columns(rows, name)
            clusters = [row.configuration.cluster for row in rows]
            found = clustered_spearman(predicted, realised, clusters, num_resamples=num_resamples)
            cells.append(f"{fixed(found.value)} ({fixed(found.low)} – {fixed(found.high)})")
            if name in RIVALS:
                won = paired_advantage(columns(rows, _BEST)[0], predicted, realised, clusters, num_resamples=num_resamples)
                best_rival[size] = max(best_rival.get(size, 0.0), abs(found.value))
                cells.append(f"{won:.0%}")
            else:
                cells.append("")
                if size != EXCESSIVE:
                    checks.append((f"{name}, {size} steps: {found.value:.2f}, goal {_GOAL_CORRELATION}", found.value >= _GOAL_CORRELATION))
        table.append([name.replace("kl", "KL") if name in RIVALS else f"**{name}**", *cells])
    for size, rows in by_size.items():
        if size == EXCESSIVE:
            continue
        for name in (_BEST, "parameter alignment", "parameter alignment + accuracy gap"):
            own = spearman(*columns(rows, name)[:2])
            checks.append((f"{name} above every rival, {size} steps: {own:.2f} against {best_rival[size]:.2f}", own > best_rival[size]))
    head = [cell for size in by_size for cell in (f"{size} steps", f"{_BEST} is better")]
    text = (
        "Spearman correlation with the realised change of success, over all configurations of all students "
        f"({', '.join(f'{size}: {len(rows)}' for size, rows in by_size.items())}), with {CONFIDENCE:.0%} intervals from drawing whole (student, "
        "teacher) clusters anew. Rivals are taken over the same tokens as the configuration trains on; the columns beside them say in "
        f"which share of the resamples {_BEST} has the larger correlation, a rival counted by its size whatever its sign."
    )
    return Section("Predicted against realised", text, ["number", *head], table, checks)


def _within(by_size: Mapping[str, Sequence[Row]]) -> Section:
    groups: dict[str, Any] = {student: (lambda row, student=student: row.configuration.student == student) for student in STUDENTS}
    groups |= {
        "reverse KL alone": lambda row: row.configuration.objective == "reverse_kl",
        "forward KL alone": lambda row: row.configuration.objective == "forward_kl",
        "all tokens of all responses": lambda row: row.configuration.mask == "none" and row.configuration.outcomes == "all",
    }
    names = (
        "targeted gain",
        "targeted gain / √KL",
        "targeted pooled alignment",
        "parameter alignment",
        "parameter alignment + accuracy gap",
        "screening gain",
        "accuracy gap",
        "log-odds value",
        "reverse kl",
    )
    table: list[list[Any]] = []
    for label, belongs in groups.items():
        for size, rows in by_size.items():
            own = [row for row in rows if belongs(row)]
            if len(own) >= 6:
                table.append([label, size, len(own), *(fixed(spearman(*columns(own, name)[:2])) for name in names)])
    text = "The same correlation within each student, and within kinds of configurations."
    return Section("In parts", text, ["configurations", "steps", "number", *(name.replace("kl", "KL") for name in names)], table)


def _signs(by_size: Mapping[str, Sequence[Row]]) -> Section:
    table: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name in (
        "targeted gain", "screening gain", _BEST, "parameter alignment", "parameter alignment + accuracy gap", "targeted advantage", "accuracy gap",
        "log-odds value",
    ):  # fmt: skip
        for size, rows in by_size.items():
            found = sign_agreement(*columns(rows, name))
            table.append([name, size, f"{found.agreeing} of {found.total}", f"{found.agreeing_settled} of {found.settled}"])
            if name in PREDICTIONS and size != EXCESSIVE:
                share = found.agreeing_settled / max(found.settled, 1)
                checks.append((f"{name}, {size} steps: {share:.0%} of settled signs, goal {_GOAL_SIGNS:.0%}", share >= _GOAL_SIGNS))
    text = "How often the sign is right: over all configurations, and over those whose realised change is settled (1.96 standard errors from zero)."
    return Section("Signs", text, ["number", "steps", "all", "settled"], table, checks)


def _together(by_size: Mapping[str, Sequence[Row]]) -> Section:
    patterns = {"gain > 0, advantage > 0": (1, 1), "gain > 0, advantage < 0": (1, -1), "gain < 0": (-1, None)}
    table: list[list[Any]] = []
    for label, (gain, advantage) in patterns.items():
        cells: list[Any] = []
        for rows in by_size.values():
            own = [
                row
                for row in rows
                if np.sign(row.predicted["targeted gain"]) == gain and advantage in (None, np.sign(row.predicted["targeted advantage"]))
            ]
            better = sum(row.change > 0 for row in own)
            cells.append(f"{better} of {len(own)}; {np.mean([row.change for row in own]):+.3f}" if own else "—")
        table.append([label, *cells])
    text = (
        "The gain is the derivative at the start of the way to the teacher, the advantage is what is there at its end (both targeted). How many "
        "configurations gained, and their mean change of success. That the two should be read together was seen on these data; it is not a "
        "prediction that was made before."
    )
    return Section("Gain and advantage together", text, ["predicted", *(f"{size} steps" for size in by_size)], table)


def _failures(by_size: Mapping[str, Sequence[Row]]) -> Section:
    table: list[list[Any]] = []
    for size, rows in by_size.items():
        if size == EXCESSIVE:
            continue
        predicted, realised, error = columns(rows, _BEST)
        wrong = (np.sign(predicted) != np.sign(realised)) & (np.abs(realised) >= 1.96 * error)
        distance = np.abs(stats.rankdata(predicted) - stats.rankdata(realised)) / len(rows)
        worst = np.isin(np.arange(len(rows)), np.argsort(-distance)[:5])
        for i in np.flatnonzero(wrong | worst):
            p = rows[i].predicted
            gains = [
                f"{predicted[i]:+.2f}",
                f"{p['targeted gain']:+.2f} ± {p['targeted gain error']:.2f}",
                f"{p['targeted advantage']:+.2f}",
            ]
            what = "wrong sign" if wrong[i] else f"{distance[i]:.0%} of the ranks apart"
            table.append([size, _label(rows[i]), *gains, f"{realised[i]:+.3f} ± {error[i]:.3f}", what])
    text = f"Configurations whose settled sign {_BEST} gets wrong, and the five whose ranks are furthest apart."
    return Section(
        "Where it fails", text, ["steps", "configuration", _BEST, "targeted gain", "targeted advantage", "realised", "what is wrong"], table
    )


def _filters(by_size: Mapping[str, Sequence[Row]]) -> Section:
    table: list[list[Any]] = []
    for size, rows in by_size.items():
        groups: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            c = row.configuration
            if c.objective == "reverse_kl" and c.mask == "none":
                groups.setdefault((c.student, c.teacher), {})[c.outcomes] = row
        for (student, teacher), own in groups.items():
            if len(own) == 3:
                cells = [_foretold(own[outcomes]) for outcomes in ("all", "incorrect", "correct")]
                order = {name: max(own, key=lambda k: own[k].predicted[name]) for name in ("targeted gain", "targeted gain / √KL")}
                realised = max(own, key=lambda k: own[k].change)
                table.append([student, teacher, size, *cells, order["targeted gain / √KL"], realised])
    text = (
        "Reverse KL on all responses, on incorrect ones only, on correct ones only: targeted gain (and gain / √KL) → realised change. The last "
        "columns say which is largest. Equal numbers of Adam steps are trained, and a filter shrinks no step, since Adam divides a loss's scale away."
    )
    names = ["student", "teacher", "steps", "all", "incorrect only", "correct only", "largest gain / √KL", "largest realised"]
    return Section("Which responses to train on", text, names, table)


def _foretold(row: Row) -> str:
    gain, per_push = row.predicted["targeted gain"], row.predicted["targeted gain / √KL"]
    return f"{gain:+.2f} ({per_push:+.2f}) → {row.change:+.3f} ± {row.error:.3f}"


def _every(by_size: Mapping[str, Sequence[Row]]) -> Section:
    table: list[list[Any]] = []
    realised = {size: {row.configuration.name: row for row in rows} for size, rows in by_size.items()}
    for name, row in {name: row for rows in realised.values() for name, row in rows.items()}.items():
        p = row.predicted
        cells = [f"{own.change:+.3f} ± {own.error:.3f} ({own.num_seeds})" if (own := realised[size].get(name)) else "—" for size in by_size]
        gains = [f"{p[f'{kind} gain']:+.2f} ± {p[f'{kind} gain error']:.2f}" for kind in ("targeted", "screening")]
        table.append(
            [
                _label(row),
                *gains,
                f"{p['targeted gain / √KL']:+.2f}",
                f"{p['targeted pooled alignment']:+.2f}",
                f"{p['accuracy gap']:+.2f}",
                *cells,
            ]
        )
    text = (
        "Predicted before training, with one standard error; realised change of success, with one standard error and the number of seeds "
        f"(of {len(SEEDS)})."
    )
    head = [
        "configuration",
        "targeted gain",
        "screening gain",
        "gain / √KL",
        "pooled alignment",
        "accuracy gap",
        *(f"realised, {s} steps" for s in by_size),
    ]
    return Section("Every configuration", text, head, table)


def _label(row: Row) -> str:
    c = row.configuration
    parts = [c.student, c.teacher, c.objective.replace("_", " ").replace("kl", "KL")]
    parts += [c.mask] if c.mask != "none" else []
    return " · ".join(parts + ([f"{c.outcomes} only"] if c.outcomes != "all" else []))
