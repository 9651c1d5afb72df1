"""A question's paths in the terminal, each measured token shaded by its gain. No number is made here."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opdscope.report.inert import inert_data

_MOST_PLACES = 5
"""Places of a path that are listed under it."""


def render_chain(view: Mapping[str, Any], teacher: int, confidence: float) -> Group:
    """The paths of one question.

    Args:
        view: From :func:`opdscope.report.chains.chain_view`, of one question.
        teacher: Index of the teacher to show.
        confidence: Level of the intervals.
    """
    data = inert_data(view)
    question, name, place = data["questions"][0], data["teachers"][teacher], str(teacher)
    largest = max(
        (abs(n["teachers"][place][0] or 0.0) for p in question["paths"] for n in p["nodes"] if place in n["teachers"]), default=0.0
    )
    success = "" if question["success"] is None else f" · student's success {question['success']:.0%}"
    parts: list[RenderableType] = [
        Text.assemble(("\n" + question["id"], "bold"), f"{success}\n", question["text"]),
        Text.assemble(("Answer ", "bold"), question["answer"]),
        Text(
            f"Shaded by the natural gain of following {name}: ▲ helps, ▼ harms; △ ▽ where the {confidence:.0%} interval reaches zero; "
            "plain text was not measured."
        ),
    ]
    for path in question["paths"]:
        parts += [_heading(path), _tokens(path, place, largest), _places(path, place)]
    return Group(*parts)


def _heading(path: Mapping[str, Any]) -> Text:
    return Text(f"\nPath {path['rollout']} · {path['outcome']} · {len(path['tokens'])} tokens, {len(path['nodes'])} measured", style="bold")


def _tokens(path: Mapping[str, Any], teacher: str, largest: float) -> Text:
    at = {node["position"]: node for node in path["nodes"]}
    text = Text()
    for position, token in enumerate(path["tokens"]):
        if position in at:
            text.append(token, style=_shade(at[position], teacher, largest))
            text.append(sign(at[position]["teachers"].get(teacher)), style="bold")
        else:
            text.append(token)
    return text


def sign(numbers: Sequence[Any] | None) -> str:
    """▲ or ▼ where the interval of a gain excludes zero, △ or ▽ where it does not, · without a gain."""
    if numbers is None or not numbers[0]:
        return "·"
    value, low, high = numbers[:3]
    sure = low is not None and (low > 0 or high < 0)
    return ("▲" if sure else "△") if value > 0 else ("▼" if sure else "▽")


def _shade(node: Mapping[str, Any], teacher: str, largest: float) -> str:
    numbers = node["teachers"].get(teacher)
    if numbers is None or not numbers[0] or not largest:
        return "underline"
    strength = (abs(numbers[0]) / largest) ** 0.5
    red, green, blue = (int(start + strength * (end - start)) for start, end in zip((70, 70, 70), _END[numbers[0] > 0], strict=True))
    return f"white on rgb({red},{green},{blue})"


_END = {True: (20, 80, 190), False: (190, 70, 0)}
"""Colour of the largest gain and of the largest harm."""


def _places(path: Mapping[str, Any], teacher: str) -> RenderableType:
    nodes = [node for node in path["nodes"] if teacher in node["teachers"]]
    largest = sorted(nodes, key=lambda node: -abs(node["teachers"][teacher][0] or 0.0))[:_MOST_PLACES]
    if not largest:
        return Text("This teacher was not measured on this path.")
    table = Table(title="Where it matters most", title_justify="left", box=SIMPLE_HEAD)
    for title in ("position", "token", "natural gain", "candidates: p → q, success"):
        table.add_column(title, justify="right" if title == "position" else "left")
    for node in largest:
        numbers = node["teachers"][teacher]
        value, low, high = numbers[:3]
        gain = "—" if value is None else f"{value:+.3g}" + ("" if low is None else f" [{low:+.2g}, {high:+.2g}]")
        strata = [_stratum(row, q) for row, q in zip(node["strata"], numbers[6], strict=False)]
        token = Text(repr(path["tokens"][node["position"]])[1:-1])
        table.add_row(str(node["position"]), token, Text(f"{sign(numbers)} {gain}"), Text("\n".join(strata)))
    return table


def _stratum(row: Mapping[str, Any], q: float | None) -> str:
    success, low, high = row["success"]
    found = "unknown" if success is None else f"{success:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
    name = row["text"] if row["tail"] else repr(row["text"])[1:-1]
    return f"{name}: {row['p']:.3f} → {'—' if q is None else f'{q:.3f}'}, {found}" + (" (taken)" if row["taken"] else "")
