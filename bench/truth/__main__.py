"""Checks every estimator against worlds where the answer is known, and writes what it finds.

    OMP_NUM_THREADS=1 python bench/truth

Prints the tables, writes docs/truth.md and bench/results/truth.json. Seeds are fixed: a second run on the same machine gives the same page.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import enumerated
import filters
import long_chains
import nulls
import protocols
import screening
import targeted
from page import Section, merged, to_markdown
from population import make_population

from opdscope.models.exact import ReasoningWorld

ROOT = Path(__file__).parents[2]
REPETITIONS = 4000

HEAD = """# Held against the truth

Written by `make bench-truth`; nothing on this page is written by hand. The world is the chain of reasoning tokens of
[the method](method.md#the-exact-worlds), in which success, gains and occupancy follow by dynamic programming. Coverage of a 90 % interval is to lie
within 88–92 %; where it does not, it is listed as missed.

"""


def _screening() -> list[Section]:
    # questions and rollouts that no constant of the package was chosen on
    population = make_population(ReasoningWorld(seed=1), 800, 240, seed=1)
    return [
        screening.coverage(population, REPETITIONS),
        screening.order(population, REPETITIONS),
        nulls.judged(population, 400),
        nulls.filters(20_000),
    ]


EXPERIMENTS: dict[str, Callable[[], list[Section]]] = {
    "screening": _screening,
    **{f"targeted rollouts, {budget}": partial(targeted.coverage, budget, 100, REPETITIONS) for budget in targeted.BUDGETS},
    "a real network": lambda: [enumerated.study(64, 25)],
    "long chains": lambda: [long_chains.study(12, 1024)],
    "protocols": lambda: protocols.compare_protocols(16),
    "filters": lambda: [filters.study(6, 8)],
}


def _timed(name: str) -> tuple[list[Section], float]:
    started = time.perf_counter()
    return EXPERIMENTS[name](), time.perf_counter() - started


def main() -> None:
    """Run the experiments, two at a time."""
    with ProcessPoolExecutor(2) as pool:
        # the short ones are last in the list: begun with, they leave no long one to end alone
        futures = {name: pool.submit(_timed, name) for name in reversed(EXPERIMENTS)}
        found = {name: futures[name].result() for name in EXPERIMENTS}
    sections = merged([section for own, _ in found.values() for section in own])
    checks = [check for section in sections for check in section.checks]
    met = sum(ok for _, ok in checks)
    times = ", ".join(f"{name} {seconds:.0f}" for name, (_, seconds) in found.items())
    foot = f"## In all\n\nTargets met: {met} of {len(checks)}. Seconds, two experiments at a time: {times}.\n"
    page = HEAD + "\n".join(map(to_markdown, sections)) + "\n" + foot
    print(page)
    (ROOT / "docs" / "truth.md").write_text(page, encoding="utf-8")
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    data = {"sections": [asdict(section) for section in sections], "seconds": {name: seconds for name, (_, seconds) in found.items()}}
    (results / "truth.json").write_text(
        json.dumps(data, indent=2, ensure_ascii=False, default=lambda number: number.item()), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
