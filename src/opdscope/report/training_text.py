"""A watched training run as rich renderables: where success and gains are going, where in the response, and what the rules did."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from scipy.stats import norm

from opdscope.report.inert import inert_data

_TICKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48
_NUM_ACTIONS, _NUM_PROBES = 6, 6


def render_training(tables: Mapping[str, pa.Table], confidence: float = 0.9) -> Group:
    """The state of a watched run.

    Args:
        tables: Of :data:`opdscope.records.TRAINING_SCHEMAS`, by name.
        confidence: Level of the intervals.
    """
    data: dict[str, list[dict[str, Any]]] = inert_data({name: table.to_pylist() for name, table in tables.items()})
    steps, z = data["training_steps"], float(norm.ppf(0.5 + confidence / 2))
    parts: list[RenderableType] = []
    if steps:
        parts += [_headline(steps[-1]), _series(steps, z, confidence)]
        bins = [row for row in data["training_bins"] if row["step"] == steps[-1]["step"]]
        if bins:
            parts.append(_bins(bins, z))
    if data["training_probes"]:
        parts.append(_probes(data["training_probes"][-_NUM_PROBES:], confidence))
    if data["training_actions"]:
        parts.append(_actions(data["training_actions"][-_NUM_ACTIONS:]))
    return Group(*parts) if parts else Group(Text("Nothing has been recorded yet."))


def _headline(last: Mapping[str, Any]) -> Text:
    text = Text()
    text.append(f"\nStep {last['step']}", style="bold")
    where = [last["objective"], f"context {last['context']}" if last["context"] else "", f"weight {last['distillation_weight']:g}"]
    text.append(f" · {' · '.join(item for item in where if item)}\n")
    unverified = f", {last['num_unverified']} of them unverified" if last["num_unverified"] else ""
    text.append(
        f"{last['num_rollouts']:,} rollouts since the beginning or the last switch{unverified}; means over about {last['num_steps']:.0f} steps. "
        f"The monitor took {last['monitor_share']:.2%} of the time.\n"
    )
    return text


def _series(steps: Sequence[Mapping[str, Any]], z: float, confidence: float) -> Table:
    table = Table(
        title=f"Live · {confidence:.0%} intervals",
        caption="Natural gain: rise of the success rate per unit step along the objective, summed over a response. Null: the student sharpened or "
        "flattened, with a push of the same KL.",
        title_justify="left", caption_justify="left", box=SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column("")
    table.add_column("now", justify="right")
    table.add_column(f"steps {steps[0]['step']}–{steps[-1]['step']}", no_wrap=True)
    last = steps[-1]
    for name in ("success", "natural_gain", "gain_over_null"):
        values = [row[name] for row in steps]
        table.add_row(
            name.replace("_", " "), _interval(last[name], z * last[f"{name}_error"], signed=name != "success"), _sparkline(values)
        )
    for name, unit in (("reverse_kl", "nats a response"), ("entropy", "nats a token"), ("length", "tokens")):
        table.add_row(f"{name.replace('_', ' ')}, {unit}", _number(last[name]), _sparkline([row[name] for row in steps]))
    if math.isfinite(last["best_share"]):
        ends = _between(last, "best_share", signed=False)
        table.add_row("best share of distillation", ends, _sparkline([row["best_share"] for row in steps]))
        for name in ("rl_alignment", "distillation_alignment", "mixed_alignment"):
            table.add_row(name.replace("_", " "), f"{last[name]:+.3f}", _sparkline([row[name] for row in steps]))
    return table


def _bins(bins: Sequence[Mapping[str, Any]], z: float) -> Table:
    table = Table(title="Where the natural gain comes from", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("tokens a response", justify="right")
    table.add_column("natural gain", justify="right")
    table.add_column("", no_wrap=True)
    largest = max((abs(row["natural_gain"]) for row in bins), default=0.0) or 1.0
    for row in bins:
        high = "" if math.isinf(row["high"]) else f"{row['high']:g}"
        low = row["low"]
        unit = "position" if row["axis"] == "depth" else "entropy"
        place = f"{unit} {low:g}–{high}" if high else f"{unit} from {low:g}"
        gain, half = row["natural_gain"], z * row["natural_gain_error"]
        colour = "green" if gain - half > 0 else "red" if gain + half < 0 else "dim"
        bar = f"[{colour}]{'█' * max(1, round(20 * abs(gain) / largest))}[/{colour}]"
        table.add_row(place, f"{row['num_tokens']:.1f}", _interval(gain, half), bar)
    return table


def _probes(probes: Sequence[Mapping[str, Any]], confidence: float) -> Table:
    table = Table(title=f"Probe set · {confidence:.0%} intervals", title_justify="left", box=SIMPLE_HEAD)
    measured = ("success", "success_change", "natural_gain", "gain_over_null", "advantage")
    shown = [name for name in measured if any(math.isfinite(row[name]) for row in probes)]
    for column in ("step", "teacher", *(name.replace("_", " ") for name in shown), "pooled alignment", "seconds"):
        table.add_column(column, justify="left" if column == "teacher" else "right")
    for row in probes:
        ends = [_between(row, name, signed=name != "success") for name in shown]
        table.add_row(str(row["step"]), escape(row["teacher"]) or "—", *ends, _number(row["pooled_alignment"]), f"{row['seconds']:.1f}")
    return table


def _actions(actions: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="What the rules did", title_justify="left", box=SIMPLE_HEAD)
    for column in ("step", "rule", "action", "why"):
        table.add_column(column, justify="right" if column == "step" else "left")
    for row in actions:
        dry = " (dry: only reported)" if row["dry"] else ""
        what = f"{row['action'].replace('_', ' ')}: {row['before']} → {row['after']}{dry}"
        table.add_row(str(row["step"]), escape(row["rule"]), escape(what), escape(row["reason"]))
    return table


def _between(row: Mapping[str, Any], name: str, *, signed: bool) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    sign = "+" if signed else ""
    return "—" if not math.isfinite(value) else f"{value:{sign}.3f} \\[{low:{sign}.3f}, {high:{sign}.3f}]"


def _interval(value: float, half: float, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return "—" if not math.isfinite(value) else f"{value:{sign}.3f} ± {half:.3f}" if math.isfinite(half) else f"{value:{sign}.3f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "—"


def _sparkline(values: Sequence[float]) -> str:
    """The last values, at most :data:`_WIDTH`, between their own least and greatest."""
    shown = [value for value in values if math.isfinite(value)]
    if len(shown) > _WIDTH:
        shown = [shown[round(index * (len(shown) - 1) / (_WIDTH - 1))] for index in range(_WIDTH)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = high - low or 1.0
    ticks = "".join(_TICKS[min(int((value - low) / span * len(_TICKS)), len(_TICKS) - 1)] for value in shown)
    return f"{ticks} [dim]{_number(low)} … {_number(high)}[/dim]"
