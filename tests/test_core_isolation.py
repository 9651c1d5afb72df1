"""The core runs where nothing but numpy and scipy is installed: an analysis needs no model and no inference engine."""

import subprocess
import sys
from pathlib import Path

import opdscope.core

PROGRAM = """
import importlib, importlib.abc, sys

BLOCKED = {"torch", "transformers", "trl", "vllm", "ray", "pydantic", "pyarrow", "yaml", "typer", "rich", "jinja2", "pandas"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            raise ImportError(f"{fullname} is blocked")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)

import numpy as np
from opdscope.core.alignment import natural_gain
from opdscope.core.divergences import signal_of

student, teacher = np.log([0.5, 0.5]), np.log([0.8, 0.2])
assert abs(natural_gain(student, signal_of("forward_kl")(student, teacher), np.array([0.8, 0.2])) - 0.18) < 1e-12
others = {name.partition(".")[0] for name in sys.modules} & BLOCKED
assert not others, others
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("opdscope.")}
assert rooms <= {"core", "errors"}, rooms
"""


def run(program, *arguments):
    return subprocess.run([sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True, timeout=120)


def test_core_imports_and_computes_without_the_rest():
    modules = [f"opdscope.core.{path.stem}" for path in Path(opdscope.core.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert len(modules) >= 9
    result = run(PROGRAM, *sorted(modules))
    assert result.returncode == 0, result.stderr


def test_importing_the_package_loads_no_torch():
    result = run("import sys, opdscope; assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    assert result.returncode == 0, result.stderr
