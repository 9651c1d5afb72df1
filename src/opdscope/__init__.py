"""See where on-policy distillation helps and where it hurts, before and while you train.

The public names: `screen` and `diagnose` do the work and return a run; `open_run` opens a stored one; `summarize` turns it into numbers, and
`advise` into a training recipe, which `load_recipe` reads; `explore` shows it in a notebook. Importing the package loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdscope.advice import advise, load_recipe
    from opdscope.config import Config, load_config
    from opdscope.errors import OpdscopeError
    from opdscope.notebook import Exploration, explore
    from opdscope.pipeline import CheckReport, carry_gradients, check, diagnose, make_plan, screen
    from opdscope.store import Run, open_run
    from opdscope.summary import Summary, compare_runs, node_scores, summarize

__all__ = [
    "CheckReport",
    "Config",
    "Exploration",
    "OpdscopeError",
    "Run",
    "Summary",
    "advise",
    "carry_gradients",
    "check",
    "compare_runs",
    "diagnose",
    "explore",
    "load_config",
    "load_recipe",
    "make_plan",
    "node_scores",
    "open_run",
    "screen",
    "summarize",
]

_HOME = {
    "CheckReport": "pipeline",
    "Config": "config",
    "Exploration": "notebook",
    "OpdscopeError": "errors",
    "Run": "store",
    "Summary": "summary",
    "carry_gradients": "pipeline",
    "check": "pipeline",
    "compare_runs": "summary",
    "advise": "advice",
    "diagnose": "pipeline",
    "explore": "notebook",
    "load_config": "config",
    "load_recipe": "advice",
    "make_plan": "pipeline",
    "node_scores": "summary",
    "open_run": "store",
    "screen": "pipeline",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'opdscope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"opdscope.{_HOME[name]}"), name)
