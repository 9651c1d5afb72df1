"""A check of a setup for the terminal and as plain data."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opdscope.report.inert import clip, inert

if TYPE_CHECKING:  # importing the pipeline loads torch, which reading a stored run must not need
    from opdscope.pipeline.checks import CheckReport

_SIGNS = {"pass": "[green]✓ pass[/green]", "warn": "[yellow]! warn[/yellow]", "fail": "[bold red]✗ FAIL[/bold red]"}
_PROMPT_CHARACTERS = 2000


def render_check(report: "CheckReport") -> Group:
    """One row per line with its remedy below, then the prompts as the models are shown them."""
    table = Table(title="Check · 16 short responses were drawn, nothing is stored", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("measured")
    for line in report.lines:
        value = escape(inert(line.value))
        remedy = f"\n[bold]→ {escape(inert(line.remedy))}[/bold]" if line.remedy else ""
        table.add_row(_SIGNS[line.state], escape(inert(line.name)), value + remedy)
    parts: list[RenderableType] = [table]
    for name, prompt in report.prompts.items():
        parts += [Text(f"Prompt of {inert(name)}, first question, between the lines:", style="bold"), Text(_framed(prompt))]
    parts.append(Text(_closing(report), style="bold"))
    return Group(*parts)


def check_data(report: "CheckReport") -> dict[str, Any]:
    """The same as plain data: failed, lines, prompts and plan."""
    return {"failed": report.failed, **asdict(report)}


def _framed(prompt: str) -> str:
    return "┈" * 40 + "\n" + inert(clip(prompt, _PROMPT_CHARACTERS)) + "\n" + "┈" * 40


def _closing(report: "CheckReport") -> str:
    states = [line.state for line in report.lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states, key=str)))
    return f"{'Not ready' if report.failed else 'Ready'}: {counts}."
