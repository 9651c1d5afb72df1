"""What every experiment returns, and the page that is made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Section:
    """One table with what it shows and which targets it meets."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Any]]
    checks: list[tuple[str, bool]] = field(default_factory=list)


def merged(sections: Sequence[Section]) -> list[Section]:
    """Sections of one title, one after the other, as one."""
    found: dict[str, Section] = {}
    for section in sections:
        first = found.setdefault(section.title, Section(section.title, section.text, section.columns, []))
        first.rows.extend(section.rows)
        first.checks.extend(section.checks)
    return list(found.values())


def band(repetitions: int) -> str:
    """How far a coverage of 90 % may stray by chance."""
    return f"four standard errors of a 90 % coverage are ±{4 * np.sqrt(0.09 / repetitions):.1%}."


def fixed(value: float, digits: int = 2) -> str:
    """A number in a table; a dash where it is undefined."""
    return "—" if not np.isfinite(value) else f"{value:.{digits}f}"


def to_markdown(section: Section) -> str:
    """Heading, text, table, and the targets that were missed."""
    lines = [f"## {section.title}", "", section.text, "", _row(section.columns), _row(["---"] * len(section.columns))]
    lines += [_row(row) for row in section.rows]
    missed = [text for text, met in section.checks if not met]
    met = len(section.checks) - len(missed)
    if section.checks:
        lines += ["", f"Targets met: {met} of {len(section.checks)}." + (" Missed:" if missed else "")]
        lines += [f"- {text}" for text in missed]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
