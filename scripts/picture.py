"""Draws the README's picture: the terminal screen of a stored run's summary, as SVG.

python scripts/picture.py runs/demo docs/demo.svg
"""

import io
import sys
from pathlib import Path

from rich.console import Console

import opdscope
from opdscope.report import render_summary


def main(run_dir: str, target: str) -> None:
    """Render the summary of `run_dir` to `target`."""
    run = opdscope.open_run(run_dir)
    console = Console(record=True, width=180, file=io.StringIO(), force_terminal=True)
    console.print(render_summary(opdscope.summarize(run.tables(), run.config).data))
    Path(target).write_text(console.export_svg(title="opdscope demo"), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
