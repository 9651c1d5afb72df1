"""Writes docs/cli.md from the command line's own help; with --check it only says whether the page is up to date."""

import sys
from pathlib import Path

import typer.main

from opdscope.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def page() -> str:
    """The page: one section a command, with arguments and options as tables."""
    command = typer.main.get_command(app)
    parts = ["# Command line", "", "Written by `make docs` from the commands' own help.", "", command.help or ""]
    for name, sub in sorted(command.commands.items()):
        parts += ["", f"## opdscope {name}", "", (sub.help or "").strip(), "", "| argument or option | meaning |", "|---|---|"]
        parts += [_row(parameter) for parameter in sub.params]
    return "\n".join(parts) + "\n"


def _row(parameter: object) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    name = f"`{parameter.metavar or parameter.name.upper()}`" if parameter.param_type_name == "argument" else names
    default = parameter.default
    shown = f" Default: {default}." if isinstance(default, int | str) and not isinstance(default, bool) else ""
    return f"| {name} | {(parameter.help or '').replace('|', '/')}{shown} |"


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is not up to date; run `make docs`")
    else:
        PAGE.write_text(page(), encoding="utf-8")
