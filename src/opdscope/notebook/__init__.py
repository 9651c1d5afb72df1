"""A stored run in a notebook: tables as data frames, plots, and a display of the run itself. Needs `opdscope[notebook]`, and no torch."""

from opdscope.notebook.exploration import Exploration, explore

__all__ = ["Exploration", "explore"]
