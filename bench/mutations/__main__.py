"""Breaks one formula at a time and checks that a test notices.

    python bench/mutations

Each mutation is one replacement in a copy of the package; the tests named beside it must then fail. Prints a table, writes docs/mutations.md and
exits with 1 if a mutation survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from listed import MUTATIONS
from mutation import Mutation

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Try every mutation in turn."""
    rows: list[tuple[str, str, str]] = []
    for mutation in MUTATIONS:
        caught = _caught(mutation)
        rows.append(
            (mutation.what, f"{mutation.path}", ", ".join(f"test_{name}" for name in mutation.tests.split()) if caught else "**none**")
        )
        print(f"{'caught  ' if caught else 'SURVIVED'}  {mutation.what}", flush=True)
    head = "# Mutations\n\nWritten by `make bench-mutations`: each formula is made wrong in turn, and the tests named must fail.\n\n"
    table = "| what is made wrong | where | noticed by |\n| --- | --- | --- |\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (ROOT / "docs" / "mutations.md").write_text(head + table, encoding="utf-8")
    sys.exit(int(any(row[2] == "**none**" for row in rows)))


def _caught(mutation: Mutation) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        target = source / "opdscope" / mutation.path
        text = target.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.path}: expected {mutation.old!r} once, found it {text.count(mutation.old)} times; mend the list of mutations"
            )
        target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        tests = [str(ROOT / "tests" / f"test_{name}.py") for name in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        finished = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
        )
        if finished.returncode not in (0, 1):
            raise SystemExit(f"{mutation.what}: the tests did not run:\n{finished.stdout}{finished.stderr}")
        return finished.returncode == 1


if __name__ == "__main__":
    main()
