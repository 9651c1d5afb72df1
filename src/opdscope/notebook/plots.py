"""Plots of a run with matplotlib; no number is made here. Signs stand beside colours, so that they read in grey too."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from opdscope.notebook.tables import need
from opdscope.report.inert import inert

_INK, _PALE = "#1b4f72", "#8a8a8a"
_LINES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#cc79a7", "D", ":"), ("#56b4e9", "v", "-"))
"""Colour, sign and line of each teacher in turn: the palette of Okabe and Ito, which most kinds of colour blindness tell apart."""

_AXES = {
    "depth": "position in the response (tokens)",
    "entropy": "student's entropy (nats)",
    "difficulty": "student's success on the question",
}


def plot_teachers(data: Mapping[str, Any], ax: Any = None) -> Any:
    """A forest plot: filled the gain over null, hollow the natural gain; lines are intervals.

    Args:
        data: `Summary.data`.
        ax: Axes to draw into; None makes new ones.
    """
    matched = {null["teacher"] for null in data["nulls"] if null["matched_teacher"]}
    listed = [t for t in data["teachers"] if t["name"] not in matched]
    listed.sort(key=lambda teacher: teacher["is_null"])
    ax = _axes(ax, 0.5 * len(listed) + 1.4)
    for place, teacher in enumerate(listed):
        colour = _PALE if teacher["is_null"] else _INK
        _interval(ax, teacher["gain_over_null"], place - 0.12, colour, "o", filled=True, label="gain over null" if place == 0 else None)
        _interval(ax, teacher["natural_gain"], place + 0.12, colour, "D", filled=False, label="natural gain" if place == 0 else None)
    names = [inert(t["name"]) + (" (null)" if t["is_null"] else f" · {t['verdict']}") for t in listed]
    _finish(ax, names, f"gain, success per unit step · {_caption(data)}")
    ax.legend(frameon=False, loc="best")
    return ax


def plot_split(data: Mapping[str, Any], ax: Any = None) -> Any:
    """A dumbbell plot of the targeted natural gain on correct (▲) and on incorrect (▼) paths.

    Args:
        data: `Summary.data`; teachers without targeted numbers are left out.
        ax: Axes to draw into; None makes new ones.
    """
    listed = [teacher for teacher in data["teachers"] if not teacher["is_null"] and teacher.get("targeted")]
    ax = _axes(ax, 0.5 * len(listed) + 1.4)
    for place, teacher in enumerate(listed):
        ends = [teacher["targeted"][paths]["natural_gain"] for paths in ("correct", "incorrect")]
        if all(end["value"] is not None for end in ends):
            ax.plot([end["value"] for end in ends], [place, place], color=_PALE, linewidth=1, zorder=1)
        for paths, end, sign, colour, shift in zip(("correct", "incorrect"), ends, "^v", ("#0072b2", "#d55e00"), (-0.1, 0.1), strict=True):
            _interval(ax, end, place + shift, colour, sign, filled=True, label=f"on {paths} paths" if place == 0 else None)
    _finish(ax, [inert(teacher["name"]) for teacher in listed], f"natural gain of targeted rollouts · {_caption(data)}")
    ax.legend(frameon=False, loc="best")
    return ax


def plot_along(frame: Any, axis: str, teachers: Sequence[str], ax: Any = None) -> Any:
    """Mean natural gain of a token against a property of its place, one line a teacher; bars are intervals, clustered by question.

    Args:
        frame: From :func:`opdscope.notebook.tables.bin_frame`.
        axis: What the bins are sorted by.
        teachers: Which ones.
        ax: Axes to draw into; None makes new ones.
    """
    ax = _axes(ax, 3.6)
    for name, (colour, sign, line) in zip(teachers, cycle(_LINES), strict=False):
        own = frame[frame["teacher"] == name].sort_values(axis)
        if len(own):
            bars = [own["natural_gain"] - own["natural_gain_low"], own["natural_gain_high"] - own["natural_gain"]]
            ax.errorbar(own[axis], own["natural_gain"], yerr=bars, color=colour, marker=sign, linestyle=line, capsize=2, label=inert(name))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel=_AXES[axis], ylabel="natural gain of a token")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="best")
    return ax


def _axes(ax: Any, height: float) -> Any:
    return need("matplotlib.pyplot").subplots(figsize=(8, height), layout="constrained")[1] if ax is None else ax


def _interval(ax: Any, estimate: Mapping[str, Any], place: float, colour: str, sign: str, *, filled: bool, label: str | None) -> None:
    if estimate["value"] is None:
        return
    if estimate["low"] is not None:
        ax.plot([estimate["low"], estimate["high"]], [place, place], color=colour, linewidth=2 if filled else 1, zorder=2)
    face = colour if filled else "white"
    ax.plot([estimate["value"]], [place], marker=sign, color=colour, markerfacecolor=face, linestyle="none", zorder=3, label=label)


def _finish(ax: Any, names: Sequence[str], label: str) -> None:
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    # a name is text: without this a pair of dollar signs would be read as mathematics
    ax.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _caption(data: Mapping[str, Any]) -> str:
    return f"{data['settings']['objective']}, {data['settings']['confidence']:.0%} intervals by question"
