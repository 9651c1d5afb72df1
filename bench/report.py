"""Measures the report of a large run in headless Chromium: file size, first paint, and how long each interaction takes to be on the screen.

    python bench/report.py [RUN]

The large run is a stored one (default runs/demo, which `make demo` leaves), its questions repeated under other names until there are 500:
what a browser has to do depends on how much there is, not on what it says. Two reports are measured: the default one, whose chain view
keeps 40 questions, and one that keeps all of them.
Writes bench/results/report.json. Targets: file under 25 MB, first paint under 2 s, an interaction under 100 ms.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from opdscope.records import SCHEMAS
from opdscope.report import write_report
from opdscope.store import Run, open_run, start_run

RESULTS = Path(__file__).parent / "results" / "report.json"
NUM_QUESTIONS, NUM_DRAWS, REPETITIONS = 500, 50, 7
TARGETS = {"file_mb": 25.0, "first_paint_ms": 2_000.0, "interaction_ms": 100.0}
INTERACTIONS = {
    "open a question": "document.getElementById('next').click()",
    "click a token": "document.querySelectorAll('#chain .tok.node')[i % 3].click()",
    "filter by outcome": "choose('outcome', i % 2 ? '' : 'incorrect')",
    "choose a teacher": "choose('teacher', String(i % 2))",
    "sort the table": "document.querySelectorAll('#teacher-table .sort')[2 + i % 3].click()",
    "another quantity": "choose('quantity', i % 2 ? 'gain_over_null' : 'natural_gain')",
    "another theme": "choose('theme', i % 2 ? 'light' : 'dark')",
}
MEASURE = """async (action) => {
  const choose = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event('change'));
  };
  const act = new Function('i', 'choose', action), frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const found = [];
  for (let i = 0; i < REPETITIONS; i++) {
    await frame();
    const start = performance.now();
    act(i, choose);
    await frame(); // until what changed is painted
    found.push(performance.now() - start);
  }
  return found;
}""".replace("REPETITIONS", str(REPETITIONS))


def main() -> None:
    """Make the large run, write its reports, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/demo", type=Path)
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = repeated(open_run(options.run), Path(folder) / "run", options.questions)
        found = [measure(large, kept) for kept in (40, options.questions)]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"questions": options.questions, "targets": TARGETS, "reports": found}, indent=2) + "\n", encoding="utf-8"
    )
    Console().print(table(found))


def repeated(run: Run, path: Path, count: int) -> Run:
    """A run of so many questions, the same ones again under other names. Fewer posterior draws, which no browser sees."""
    analysis = run.config.analysis.model_copy(update={"num_draws": NUM_DRAWS})
    large = start_run(path, run.config.model_copy(update={"analysis": analysis}))
    ids = run.table("questions")["question_id"].to_pylist()
    for copy in range(-(-count // len(ids))):
        kept = pa.array(ids[: count - copy * len(ids)])
        nodes = run.table("nodes")
        own_nodes = nodes.filter(pc.is_in(nodes["question_id"], kept))["node_id"].combine_chunks()
        for name in SCHEMAS:
            found = run.table(name)
            if "question_id" in found.column_names:
                found = found.filter(pc.is_in(found["question_id"], kept))
            elif "node_id" in found.column_names:
                found = found.filter(pc.is_in(found["node_id"], own_nodes))
            elif copy:
                continue  # tables about no question
            if found.num_rows:
                large.write(name, f"copy-{copy:04d}", renamed(found, f"copy-{copy}-", SCHEMAS[name]))
    return large


def renamed(found: pa.Table, prefix: str, schema: pa.Schema) -> pa.Table:
    """The same rows about questions of other names."""
    for column in ("question_id", "node_id", "source_question_id"):
        if column in found.column_names:
            values = [f"{prefix}{value}" if value else value for value in found[column].to_pylist()]
            found = found.set_column(found.column_names.index(column), schema.field(column), pa.array(values, pa.string()))
    return found


def measure(run: Run, kept: int) -> dict[str, Any]:
    """One report: what it weighs and how fast it is."""
    path = write_report(run, run.path / f"report-{kept}.html", kept)
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        paints = [first_paint(browser.new_page(), path) for _ in range(3)]
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        times = {name: page.evaluate(MEASURE, action) for name, action in INTERACTIONS.items()}
        browser.close()
    return {
        "questions_in_chain_view": kept,
        "file_mb": path.stat().st_size / 1e6,
        "first_paint_ms": statistics.median(paints),
        "interactions_ms": {name: {"median": statistics.median(found), "most": max(found)} for name, found in times.items()},
    }


def first_paint(page: Page, path: Path) -> float:
    """Milliseconds from opening the file to the first content on the screen."""
    page.goto(path.as_uri())
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    return float(found)


def table(found: list[dict[str, Any]]) -> Table:
    """Figures beside their targets."""
    made = Table(title="The report of a large run, in headless Chromium", title_justify="left")
    for title in ("", *(f"{row['questions_in_chain_view']} questions in the chain view" for row in found), "target"):
        made.add_column(title, justify="right" if title else "left")
    made.add_row("file, MB", *(f"{row['file_mb']:.1f}" for row in found), f"< {TARGETS['file_mb']:.0f}")
    made.add_row("first paint, ms", *(f"{row['first_paint_ms']:.0f}" for row in found), f"< {TARGETS['first_paint_ms']:,.0f}")
    for name in INTERACTIONS:
        cells = [row["interactions_ms"][name] for row in found]
        made.add_row(
            f"{name}, ms (most)", *(f"{cell['median']:.0f} ({cell['most']:.0f})" for cell in cells), f"< {TARGETS['interaction_ms']:.0f}"
        )
    return made


if __name__ == "__main__":
    main()
