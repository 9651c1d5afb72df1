"""Draws the figure of the documentation's first page from the demonstration's run.

    python scripts/site_figure.py [RUN]

The run is a stored one (default runs/demo, which `make demo` leaves); writes docs/images/teachers.png.
"""

import sys
from pathlib import Path

import opdscope

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "teachers.png"


def main(run: str) -> None:
    """Draw and write."""
    axes = opdscope.explore(run).plot_teachers()
    axes.figure.savefig(FIGURE, dpi=70, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
