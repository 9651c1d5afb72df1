"""How a table is written on docs/economy.md: with every target, met or not."""

from page import Section


def lines_of(section: Section) -> list[str]:
    """A section as lines of Markdown."""
    table = [section.columns, ["---"] * len(section.columns), *section.rows]
    found = [f"## {section.title}", "", section.text, "", *("| " + " | ".join(map(str, row)) + " |" for row in table), ""]
    for text, met in section.checks:
        found += [f"- {'met' if met else '**missed**'}: {text}"]
    return [*found, ""] if section.checks else found
