"""Packages that only some verifiers need."""

import importlib
import importlib.util
from types import ModuleType

from opdscope.errors import TaskError


def require(module_name: str) -> ModuleType:
    """The module, imported.

    Raises:
        TaskError: If it is not installed; the text names the remedy.
    """
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(_remedy(module_name)) from error


def check_installed(module_name: str) -> None:
    """Raise TaskError unless the module could be imported; cheaper than importing it."""
    if importlib.util.find_spec(module_name) is None:
        raise TaskError(_remedy(module_name))


def _remedy(module_name: str) -> str:
    return f"this task needs {module_name.replace('_', '-')}, which is not installed; run pip install 'opdscope[tasks]'"
