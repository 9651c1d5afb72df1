"""What a token buys: ranking, per-node numbers, each technique, and the allocator itself.

    python bench/economy            # everything
    python bench/economy nodes …    # these parts; the page takes the others from their last run

Prints the tables, writes docs/economy.md and bench/results/economy/. Allocations are compared in worlds where every success is known.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import allocator
import nodes
import ranking
import techniques
import transformer
from page import Section

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "economy"


def _nodes() -> list[Section]:
    exacts = {name: nodes.made(name, 6) for name in ("chains", "tree")}
    return [nodes.economy(exacts, 2), nodes.coverage(exacts, 5)]


PARTS: dict[str, Callable[[], list[Section]]] = {
    "stopping": lambda: [ranking.stopping(ranking.populations(), 150)],
    "ranking": lambda: [ranking.reliability(ranking.populations(), 6, 100)],
    "transformer": lambda: [transformer.gains()],
    "nodes": _nodes,
    "techniques": lambda: [techniques.screening(24, 600), techniques.continuations(60, 1000)],
    "forecasts": lambda: [ranking.forecasts()],
    "allocator": lambda: [allocator.scaling(), allocator.share()],
}


def main(chosen: list[str]) -> None:
    """Run the parts and write the page from all that have been run."""
    unknown = set(chosen) - set(PARTS)
    if unknown:
        sys.exit(f"there is no part {sorted(unknown)[0]!r}; those there are: {', '.join(PARTS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in chosen or PARTS:
        started = time.process_time()
        sections = PARTS[name]()
        found = {"seconds": round(time.process_time() - started), "sections": [asdict(section) for section in sections]}
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
        print("\n".join(line for section in sections for line in section.lines()), flush=True)
    _write_page()


def _write_page() -> None:
    lines = ["# Economy", "", "Written by `make bench-economy`; nothing on this page is written by hand.", ""]
    seconds: list[str] = []
    checks: list[bool] = []
    for name in PARTS:
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            sections = [Section(**section) for section in found["sections"]]
            lines += [line for section in sections for line in section.lines()]
            checks += [bool(met) for section in sections for _, met in section.checks]
            seconds.append(f"{name} {found['seconds']}")
    lines += ["## In all", "", f"Targets met: {sum(checks)} of {len(checks)}. Processor seconds: {', '.join(seconds)}.", ""]
    (ROOT / "docs" / "economy.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
