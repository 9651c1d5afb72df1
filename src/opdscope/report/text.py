"""A summary and a plan as rich renderables for the terminal. No number is made here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opdscope.report.inert import inert_data

if TYPE_CHECKING:  # importing the pipeline loads torch, which reading a stored run must not need
    from opdscope.pipeline.plan import Plan

_BAR_WIDTH = 19


def render_summary(data: Mapping[str, Any]) -> Group:
    """The ranking, the split by the path's outcome, and what must stand beside them.

    Args:
        data: `Summary.data`.
    """
    data = inert_data(data)
    parts: list[RenderableType] = [_verdict(data), _ranking(data)]
    if data["targeted"] is not None:
        parts += _splits(data)
    if data["parameters"] is not None:
        parts.append(_parameters(data))
    if data["paper"] is not None:
        parts += [_paper_numbers(data), _paper_beside_sound(data)]
    parts += [_rivals(data), *_beside(data)]
    return Group(*parts)


def _verdict(data: Mapping[str, Any]) -> Text:
    student, outcomes = data["student"], data["student"]["outcomes"]
    text = Text("\n")
    text.append(data["verdict"]["text"], style="bold")
    text.append(
        f"\nStudent: success {Text.from_markup(estimate_text(student['success'], sign='')).plain} on {student['num_questions']} questions, "
        f"{student['num_questions_with_both_outcomes']} of them with both outcomes; {student['num_rollouts']} rollouts "
        f"({outcomes['correct']} correct, {outcomes['incorrect']} incorrect, {outcomes['truncated']} truncated, "
        f"{outcomes['unverifiable']} unverifiable).\n"
    )
    return text


def _ranking(data: Mapping[str, Any]) -> Table:
    settings = data["settings"]
    level = f"{settings['confidence']:.0%}"
    table = Table(
        title=f"Teachers by gain over null · {settings['objective']} · {level} intervals, clustered by question",
        caption="Natural gain: rise of the success rate per unit step along the objective, summed over a response. "
        "Verdicts and distances from the first hold together.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    table.add_column("#", justify="right")
    table.add_column("teacher")
    table.add_column("gain over null", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("natural gain", justify="right")
    table.add_column("per √KL", justify="right")
    table.add_column("behind first", justify="right")
    table.add_column("verdict")
    table.add_column("questions", justify="right")
    listed = _listed(data, data["teachers"])
    span = _span([teacher["gain_over_null"] for teacher in listed])
    for rank, teacher in enumerate(listed, start=1):
        skipped = f" (−{teacher['num_questions_skipped']})" if teacher["num_questions_skipped"] else ""
        table.add_row(
            str(rank),
            _name(teacher),
            estimate_text(teacher["gain_over_null"]),
            _bar(teacher["gain_over_null"], span),
            estimate_text(teacher["natural_gain"]),
            estimate_text(teacher["natural_gain_per_sqrt_kl"]),
            "—" if teacher["behind_first"] is None else estimate_text(teacher["behind_first"]),
            _coloured(teacher["verdict"]) + _null(teacher),
            f"{teacher['natural_gain']['num_clusters']}{skipped}",
        )
    return table


def _listed(data: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All of these teachers but the nulls at one teacher's entropy, which are seen where they are the null to beat."""
    matched = {null["teacher"] for null in data["nulls"] if null["matched_teacher"]}
    return [teacher for teacher in teachers if teacher["name"] not in matched]


def _null(teacher: Mapping[str, Any]) -> str:
    """Which null it is that a verdict speaks of, on a line of its own."""
    name = teacher["null_to_beat"]["name"]
    return f"\n[dim]({escape(name)})[/dim]" if teacher["verdict"].startswith("null ") and name else ""


def _splits(data: Mapping[str, Any]) -> list[Table]:
    return [
        _split(
            data,
            "Gain by the path's outcome · from fresh continuations of the paths' nodes",
            "Natural gain summed over a response; teacher advantage per token.",
            {"correct": ("correct", "natural_gain"), "incorrect": ("incorrect", "natural_gain"), "all": ("all", "natural_gain")}
            | {"advantage": ("all", "advantage")},
        ),
        _split(
            data,
            "Alignment by the path's outcome · cosine between ideal and distillation gradient",
            "Pooled over nodes, corrected for noise; the mean of per-node cosines is the source paper's, its interval a bound.",
            {name: (name, "pooled_alignment") for name in ("correct", "incorrect", "all")} | {"mean of cosines": ("all", "mean_score")},
        ),
    ]


def _split(data: Mapping[str, Any], title: str, caption: str, columns: Mapping[str, tuple[str, str]]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    table.add_column("teacher")
    for column in columns:
        table.add_column(column, justify="right", min_width=20)
    for teacher in _listed(data, data["teachers"]):
        if teacher["targeted"] is not None:
            cells = (estimate_text(teacher["targeted"][paths][name], 4 if name == "advantage" else 2) for paths, name in columns.values())
            table.add_row(escape(teacher["name"]), *cells)
    return table


def _parameters(data: Mapping[str, Any]) -> Table:
    objectives = list(dict.fromkeys(row["objective"] for row in data["parameters"]))
    table = Table(
        title=f"Alignment in the student's parameters · {data['settings']['confidence']:.0%} intervals, clustered by group of questions",
        caption="Cosine of the gradients that ideal and distillation step have in the weights: what nodes do to one another is part of it.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    table.add_column("teacher")
    for objective in objectives:
        table.add_column(objective, justify="right")
    found = {(row["teacher"], row["objective"]): row["alignment"] for row in data["parameters"]}
    for teacher in _listed(data, data["teachers"]):
        if (teacher["name"], objectives[0]) in found:
            table.add_row(_name(teacher), *(estimate_text(found[teacher["name"], objective]) for objective in objectives))
    return table


def _paper_numbers(data: Mapping[str, Any]) -> Table:
    paper = data["paper"]
    shares = [teacher["paths"]["all"]["paper"]["share_two_children"] for teacher in paper["teachers"]]
    table = Table(
        title="The source paper's protocol · its own numbers, biases included",
        caption=f"Cosines on the kept children; where a node keeps two, they are ±1: that is {_range(shares)} of a teacher's scored nodes.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    table.add_column("teacher")
    columns = [(name, "mean_cosine") for name in ("correct", "incorrect", "all")]
    columns += [(name, "weighted_mean_cosine") for name in ("correct", "incorrect")]
    for paths, name in columns:
        table.add_column(paths if name == "mean_cosine" else f"{paths}, by range", justify="right")
    for title in ("positive", "oracle filter", "scored nodes"):
        table.add_column(title, justify="right")
    for teacher in _listed(data, data["paper"]["teachers"]):
        own = teacher["paths"]["all"]["paper"]
        factor = "" if own["oracle_ratio"] is None else f" [dim](×{own['oracle_ratio']:.1f})[/dim]"
        table.add_row(
            _name(teacher),
            *(estimate_text(teacher["paths"][paths]["paper"][name]) for paths, name in columns),
            _percent(own["share_positive"]),
            _number(own["oracle_filter"]["value"], 2) + factor,
            f"{own['num_scored']} of {own['num_nodes']}",
        )
    return table


def _paper_beside_sound(data: Mapping[str, Any]) -> Table:
    paper, confidence = data["paper"], data["settings"]["confidence"]
    table = Table(
        title=f"The paper's numbers beside sound ones from the same run · all paths, {confidence:.0%} intervals, clustered by question",
        caption="Sound: from fresh continuations, in halves for the filter; about the chosen nodes only, which represent no others. "
        f"{paper['num_measured_nodes']} of {paper['num_nodes']} nodes have two measured strata or more; there "
        f"{_percent(paper['student_mass_not_reached'])} of the student's probability is not measured. Natural gain: from ordinary rollouts, "
        "about whole responses.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    for title in (
        "teacher",
        "mean cosine",
        "sound: score",
        "pooled",
        "oracle filter",
        "honest filter",
        "advantage",
        "sound: advantage",
    ):
        table.add_column(title, justify="left" if title == "teacher" else "right")
    table.add_column("natural gain", justify="right")
    for teacher in _listed(data, data["paper"]["teachers"]):
        own, sound = teacher["paths"]["all"]["paper"], teacher["paths"]["all"]["sound"]
        table.add_row(
            _name(teacher),
            _number(own["mean_cosine"]["value"], 2),
            estimate_text(sound["mean_score"]),
            estimate_text(sound["pooled_alignment"]),
            _number(own["oracle_filter"]["value"], 2),
            estimate_text(sound["honest_filter"]),
            _number(own["advantage"]["value"], 3),
            estimate_text(sound["advantage"], 3),
            estimate_text(teacher["natural_gain"]),
        )
    return table


def _name(teacher: Mapping[str, Any]) -> str:
    return escape(teacher["name"]) + (" [dim](null)[/dim]" if teacher["is_null"] else "")


def _range(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{_percent(min(known))} to {_percent(max(known))}" if known else "—"


def _rivals(data: Mapping[str, Any]) -> Table:
    table = Table(
        title="Cheap rivals · means per token",
        caption="Last lines: rank correlation with the natural gain; it takes four teachers.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    names = list(dict.fromkeys(name for teacher in data["teachers"] for name in teacher["rivals"]))
    table.add_column("teacher")
    for name in names:
        table.add_column("\n".join(name.rsplit("_", 1)).replace("_", " "), justify="right")
    for teacher in _listed(data, data["teachers"]):
        table.add_row(escape(teacher["name"]), *(_number(teacher["rivals"].get(name), 4) for name in names))
    table.add_section()
    for title, key in (
        ("rank correlation, real teachers", "rival_rank_correlations"),
        ("with the nulls", "rival_rank_correlations_with_nulls"),
    ):
        table.add_row(title, *(_number(data[key].get(name), 2) for name in names))
    return table


def _beside(data: Mapping[str, Any]) -> list[Text]:
    student, spent, targeted = data["student"], data["spent"], data["targeted"]
    lines = [
        f"Responses: {_percent(student['share_truncated'])} truncated, {_percent(student['share_unverifiable'])} unverifiable.",
        f"Spent: {spent['rollouts']:,} rollouts ({spent['demonstrations']:,} of them demonstrations), {spent['continuations']:,} continuations, "
        f"{spent['teacher_rollouts']:,} teacher rollouts; {spent['generated_tokens']:,} tokens generated, {spent['scored_tokens']:,} scored.",
    ]
    lines += _target(data["target"])
    if targeted is not None:
        worst = max((value for value in targeted["teacher_mass_outside_candidates"].values() if value is not None), default=None)
        lines.append(
            f"Nodes: {targeted['num_nodes']:,}; {_percent(targeted['share_of_nodes_without_success_range'])} show no success range. Outside the "
            f"measured candidates: {_percent(targeted['student_mass_outside_candidates'])} of the student's probability, sampled as the tail "
            f"({_percent(targeted['student_mass_not_sampled'])} not sampled), at most {_percent(worst)} of a teacher's."
        )
        if (left := targeted["variance_left_by_controls"]) is not None:
            lines.append(f"Controls of continuations leave {_percent(left)} of the variance of outcomes.")
        if shared := targeted["shared_random_numbers"]:
            lines.append(
                f"Shared random numbers: outcomes correlate {shared['across_candidates']:+.2f} across candidates and {shared['within_pair']:+.2f} "
                f"within pairs, worth {shared['economy']:.2f} times the continuations where candidates are compared."
            )
    if data["truncations"]:
        lines.append(_truncated(data["truncations"]))
    for teacher in data["teachers"]:
        for reason, count in teacher["skip_reasons"].items():
            lines.append(f"{teacher['name']}: {count} questions skipped, {reason}.")
    if data["times"]:
        lines.append("Seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in data["times"].items()) + ".")
    return [Text(line) for line in lines]


def _target(target: Mapping[str, Any]) -> list[str]:
    """What was asked for and what it cost; nothing where every node simply gets its continuations."""
    cost = target["cost"]
    lines = [f"Target {target['kind']}: {target['note']}."] if target["note"] else []
    if cost is not None:
        lines.append(
            f"Cost of the target: {cost['foretold_tokens']:,} tokens of {cost['stage']} foretold after the pilot, {cost['spent_tokens']:,} spent."
        )
    return lines


def _truncated(rows: Sequence[Mapping[str, Any]]) -> str:
    sizes = ", ".join(str(size) for size in sorted({row["size"] for row in rows}))
    flips = [
        f"{row['objective']} of {row['teacher']} at the {row['support']}'s top {row['size']} {'with' if row['tail_bucket'] else 'without'} a bucket "
        f"(a token's gain {_number(row['full']['value'], 4)} becomes {_number(row['truncated']['value'], 4)})"
        for row in rows
        if row["says"] == "flips"
    ]
    found = "; ".join(flips) if flips else "no direction is shown to flip"
    return f"Truncated to the likeliest tokens ({sizes} kept): {found}. All of it: opdscope report RUN."


def render_plan(plan: "Plan") -> Group:
    """What a diagnosis will cost: one row per stage, then memory."""
    table = Table(
        title="Plan · nothing has been spent yet",
        caption=f"Expected lengths: {plan.length_source}. Speeds: {plan.speed_source}.",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption_justify="left",
    )
    for title in ("stage", "samples", "tokens expected", "tokens at most", "time expected"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in plan.stages:
        table.add_row(
            stage.name, f"{stage.num_samples:,}", f"{stage.expected_tokens:,}", f"{stage.most_tokens:,}", duration(stage.expected_seconds)
        )
    table.add_section()
    table.add_row("total", "", f"{plan.expected_tokens:,}", f"{plan.most_tokens:,}", duration(plan.expected_seconds))
    memory = Text(f"Memory: about {plan.memory_bytes / 1e9:.1f} GB ({plan.memory_note}).")
    target = [Text(f"Cost of the target: {plan.target_source}.")] if plan.target_source else []
    return Group(table, memory, *target)


def duration(seconds: float | None) -> str:
    """A rough duration as people say it."""
    if seconds is None:
        return "—"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate_text(estimate: Mapping[str, Any] | None, digits: int = 2, sign: str = "+") -> str:
    """An estimate with its interval as markup, or a dash."""
    if estimate is None or estimate["value"] is None:
        return "—"
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.{digits}f} [dim]no interval[/dim]"
    return f"{estimate['value']:{sign}.{digits}f} [dim]\\[{estimate['low']:{sign}.{digits}f}, {estimate['high']:{sign}.{digits}f}][/dim]"


def _number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.1%}"


def _coloured(verdict: str) -> str:
    style = {"helps": "green", "harms": "red", "undecided": "yellow", "null": "dim"}.get(verdict, "yellow")
    return f"[{style}]{verdict}[/{style}]"


def _span(estimates: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    ends = [0.0, *(e[key] for e in estimates for key in ("low", "high") if e[key] is not None)]
    return min(ends), max(ends)


def _bar(estimate: Mapping[str, Any], span: tuple[float, float]) -> str:
    """The interval as a line of `─`, the estimate as `●`, zero as `│`."""
    low, high = span
    if estimate["low"] is None or high <= low:
        return ""

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (_BAR_WIDTH - 1))

    cells = [" "] * _BAR_WIDTH
    cells[place(0.0)] = "│"
    for index in range(place(estimate["low"]), place(estimate["high"]) + 1):
        cells[index] = "─" if cells[index] == " " else "┼"
    cells[place(estimate["value"])] = "●"
    return "".join(cells)
