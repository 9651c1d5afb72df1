"""A page of tables, written by one command."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """A table with what it says and how it was made."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Any]]
    checks: list[tuple[str, bool]] = field(default_factory=list)
    """Targets, and whether each is met."""

    def lines(self) -> list[str]:
        """As Markdown."""
        table = [self.columns, ["---"] * len(self.columns), *self.rows]
        found = [f"## {self.title}", "", self.text, "", *("| " + " | ".join(map(str, row)) + " |" for row in table), ""]
        for text, met in self.checks:
            found += [f"- {'met' if met else '**missed**'}: {text}"]
        return [*found, ""] if self.checks else found
