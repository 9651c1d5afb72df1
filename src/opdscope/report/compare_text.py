"""Runs side by side, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opdscope.report.inert import inert_data
from opdscope.report.text import estimate_text

_TITLES = {
    "natural_gain": "Natural gain",
    "gain_over_null": "Gain over null",
    "natural_gain_per_sqrt_kl": "Natural gain per √KL",
}


def render_comparison(data: Mapping[str, Any]) -> Group:
    """The runs, the student's success, and one table for each quantity of the teachers.

    Args:
        data: From :func:`opdscope.summary.compare_runs`.
    """
    data = inert_data(data)
    parts: list[RenderableType] = [_runs(data)]
    parts += [_quantity(data, quantity) for quantity in _TITLES if any(run[quantity] for t in data["teachers"] for run in t["runs"])]
    if any(run["pooled_alignment"] for teacher in data["teachers"] for run in teacher["runs"]):
        parts.append(_pooled(data))
    parts.append(Text("≠: told apart. The intervals of one quantity's differences hold together, over teachers and pairs."))
    parts += [Text(_pairing(pair)) for pair in data["pairs"]]
    parts += [Text(f"Note: {note}.") for note in data["notes"]]
    for run in data["runs"][1:]:
        if run["differs_from_first"]:
            parts.append(Text(f"{run['run']} against {data['runs'][0]['run']}: {'; '.join(run['differs_from_first'])}."))
    return Group(*parts)


def _runs(data: Mapping[str, Any]) -> Table:
    table = _table(data, f"Runs · {data['confidence']:.0%} intervals by question; differences: later minus earlier, with their questions")
    table.columns[0].header = "student"
    pairs = _pairs(data)
    for title in [run["run"] for run in data["runs"]] + [f"{second} − {first}" for first, second in pairs]:
        table.add_column(escape(title), justify="right")
    table.add_row("model", *(escape(run["student"]) for run in data["runs"]))
    table.add_row("questions", *(f"{run['num_questions']:,} ({run['task']})" for run in data["runs"]))
    table.add_row("success", *(estimate_text(run["success"], sign="") for run in data["runs"]), *_differences(data["success"], pairs))
    return table


def _quantity(data: Mapping[str, Any], quantity: str) -> Table:
    table = _table(data, f"{_TITLES[quantity]} · {data['objective']}")
    pairs = _pairs(data)
    for title in [run["run"] for run in data["runs"]] + [f"{second} − {first}" for first, second in pairs]:
        table.add_column(escape(title), justify="right")
    for teacher in _listed(data):
        values = {run["run"]: run[quantity] for run in teacher["runs"]}
        cells = [estimate_text(values.get(run["run"])) for run in data["runs"]]
        table.add_row(_name(teacher), *cells, *_differences(teacher["differences"][quantity], pairs))
    return table


def _pooled(data: Mapping[str, Any]) -> Table:
    table = _table(data, f"Pooled alignment · {data['objective']} · its interval has no standard error, so no difference is tested")
    for run in data["runs"]:
        table.add_column(escape(run["run"]), justify="right")
    for teacher in _listed(data):
        values = {run["run"]: run["pooled_alignment"] for run in teacher["runs"]}
        table.add_row(_name(teacher), *(estimate_text(values.get(run["run"])) for run in data["runs"]))
    return table


def _table(data: Mapping[str, Any], title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("teacher")
    return table


def _pairs(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of more than two runs each one against the first; all pairs are in the JSON."""
    first = data["runs"][0]["run"]
    return [(first, run["run"]) for run in data["runs"][1:]]


def _differences(differences: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> list[str]:
    by_pair = {(d["first"], d["second"]): d for d in differences}
    return [_difference(by_pair.get(pair)) for pair in pairs]


def _difference(found: Mapping[str, Any] | None) -> str:
    """With the number of questions that it rests on: a context that some questions lack is compared on the others."""
    if found is None:
        return "—"
    text = f"{estimate_text(found['difference'])} [dim]{found['difference']['num_clusters']}[/dim]"
    return f"[bold]{text} ≠[/bold]" if found["decided"] else text


def _listed(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All but the nulls at one teacher's entropy."""
    return [teacher for teacher in data["teachers"] if not (teacher["is_null"] and teacher["name"].endswith(": its entropy"))]


def _name(teacher: Mapping[str, Any]) -> str:
    return escape(teacher["name"]) + (" [dim](null)[/dim]" if teacher["is_null"] else "")


def _pairing(pair: Mapping[str, Any]) -> str:
    if pair["pairing"] == "paired":
        return f"{pair['first']} and {pair['second']} are paired on the {pair['num_shared']} questions that both have."
    return (
        f"{pair['first']} ({pair['num_first']} questions) and {pair['second']} ({pair['num_second']}) are not paired: they have "
        f"{pair['num_shared']} questions in common, and a difference may be the questions' as well."
    )
