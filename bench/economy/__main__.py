"""What a token buys: ranking, per-node numbers, each technique, and the allocator itself.

    python bench/economy            # everything
    python bench/economy techniques # this part; the page takes the others from their last run
    python bench/economy page       # the page alone, from what has been run
    python bench/economy pair       # a real pair of models, from folders that you name; no other part needs one

Prints the tables, writes docs/economy.md and bench/results/economy/. Allocations are compared in worlds where every success is known.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "truth"))  # tables are those of docs/truth.md

import allocator
import continuation_controls
import early_ends
import expansion
import inclusion
import nodes
import planning
import ranking
import real_pair
import shared_numbers
import techniques
import transformer
from economy_page import lines_of
from page import Section

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "economy"


WORLDS = ("chains", "tree")


def _nodes(name: str) -> list[Section]:
    exact = {name: nodes.made(name, 10)}
    return [nodes.economy(exact, 3), nodes.coverage(exact, 24)]


PARTS: dict[str, Callable[[], list[Section]]] = {
    **{f"stopping-{name}": lambda name=name: [ranking.stopping(name, 600)] for name in WORLDS},
    **{f"ranking-{name}": lambda name=name: [ranking.reliability(name, 16, 200)] for name in WORLDS},
    "transformer": lambda: [transformer.gains()],
    "pair": real_pair.gains,
    **{f"nodes-{name}": lambda name=name: _nodes(name) for name in WORLDS},
    "inclusion": lambda: [inclusion.inclusion(24, 16, 4)],
    "planning": lambda: [planning.planning(8, 3)],
    "expansion": lambda: [expansion.expansion(6, 4, 8)],
    "early-ends": lambda: [early_ends.saved(16, 64)],
    "techniques": lambda: [techniques.screening(24, 600), techniques.continuations(60, 1000)],
    "continuation-controls": lambda: [continuation_controls.economy(16)],
    "shared-numbers": lambda: [shared_numbers.effects(8)],
    "shared-coverage": lambda: [shared_numbers.coverage(12, 8)],
    **{f"forecasts-{name}": lambda name=name: [ranking.forecasts(name)] for name in WORLDS},
    "allocator": lambda: [allocator.scaling(), allocator.share()],
}


def main(chosen: list[str]) -> None:
    """Run the parts and write the page from all that have been run."""
    unknown = set(chosen) - {*PARTS, "page"}
    if unknown:
        sys.exit(f"there is no part {sorted(unknown)[0]!r}; those there are: {', '.join(PARTS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in chosen or PARTS:
        if name == "page" or (name == "pair" and not chosen and not real_pair.given()):
            continue
        started = time.process_time()
        sections = PARTS[name]()
        found = {
            "seconds": round(time.process_time() - started),
            "commit": _commit(),
            "sections": [asdict(section) for section in sections],
        }
        _result(name).write_text(json.dumps(found, indent=2, ensure_ascii=False, default=bool), encoding="utf-8")
        print("\n".join(line for section in sections for line in lines_of(section)), flush=True)
    _write_page()


def _commit() -> str:
    """Of the tree that a part is run from."""
    found = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _result(name: str) -> Path:
    """Where a part's result is kept; that of the pair in the repository, since few can make it again."""
    return Path(__file__).parent / "real_pair.json" if name == "pair" else RESULTS / f"{name}.json"


def _write_page() -> None:
    lines = ["# Economy", "", "Written by `make bench-economy`; nothing on this page is written by hand.", ""]
    seconds: list[str] = []
    commits: dict[str, list[str]] = {}
    checks: list[bool] = []
    for name in PARTS:
        path = _result(name)
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            sections = [Section(**section) for section in found["sections"]]
            lines += [line for section in sections for line in lines_of(section)]
            checks += [bool(met) for section in sections for _, met in section.checks]
            seconds.append(f"{name} {found['seconds']}")
            commits.setdefault(found["commit"], []).append(name)
    missing = [name for name in PARTS if not _result(name).exists()]
    left_out = f" Not run: {', '.join(missing)}." if missing else ""
    made = "; ".join(f"{', '.join(names)} at {commit}" for commit, names in commits.items())
    lines += ["## In all", "", f"Made at commits: {made}.", ""]
    lines += [f"Targets met: {sum(checks)} of {len(checks)}. Processor seconds: {', '.join(seconds)}.{left_out}", ""]
    (ROOT / "docs" / "economy.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
