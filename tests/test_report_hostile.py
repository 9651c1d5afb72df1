"""Runs in which nothing is as it should be: no exception, no warning, and nothing that acts, in the terminal and in a real browser."""

import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fixtures.browser import chromium, opened
from fixtures.stored_runs import RUINS, exact_run, hostile_copy, ruined_copy
from opdscope.errors import RunDirectoryError
from opdscope.report import read_chain, render_chain, render_summary, write_report
from opdscope.store import Run
from opdscope.summary import summarize


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hostile")
    return hostile_copy(exact_run(folder / "exact"), folder / "run")


@pytest.fixture(scope="module")
def ruined(hostile: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("ruined")
    return {ruin: ruined_copy(hostile, folder / ruin.replace(" ", "-"), ruin) for ruin in RUINS}


@pytest.fixture(scope="module")
def reports(hostile: Run, ruined: dict[str, Run]) -> dict[str, Path]:
    return {name: write_report(run) for name, run in {"hostile": hostile, **ruined}.items()}


def printed(*renderables: Any) -> str:
    stream = io.StringIO()
    for renderable in renderables:
        Console(file=stream, width=200, force_terminal=False).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("ruin", RUINS)
def test_a_ruined_run_has_a_summary_a_chain_and_a_report(ruined: dict[str, Run], reports: dict[str, Path], ruin: str) -> None:
    run = ruined[ruin]
    tables = run.tables()
    summary = summarize(tables, run.config, run.times())
    shown = [render_summary(summary.data)]
    if ruin == "no nodes":
        with pytest.raises(RunDirectoryError, match="no path of question"):
            read_chain(run, "1")
    else:
        view = read_chain(run, "1")
        shown += [render_chain(view, teacher, 0.9) for teacher in range(len(view["teachers"]))]
    assert not {c for c in printed(*shown) if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
    assert "NaN" not in summary.to_json()
    assert summary.data["verdict"]["kind"] == (
        "undefined" if ruin.startswith("nan") else "helps" if ruin == "no nodes" else "nothing to measure"
    )
    assert reports[ruin].stat().st_size < 3e6


USE_EVERYTHING = """() => {
  for (const heading of document.querySelectorAll('.sort')) heading.click();
  for (const select of document.querySelectorAll('main select')) {
    for (const option of [...select.options]) { select.value = option.value; select.dispatchEvent(new Event('change')); }
  }
  for (const token of document.querySelectorAll('.tok.node[type=button]')) token.click();
  for (const details of document.querySelectorAll('details')) details.open = true;
}"""


def test_in_a_browser_hostile_and_ruined_runs_act_in_no_way(reports: dict[str, Path]) -> None:
    with chromium() as browser:
        for name, path in reports.items():
            with opened(browser, path) as page:
                assert page.title() == "exact · opdscope", name
                token = page.locator("#chain .tok.node")
                assert (token.count() > 0) == (name != "no nodes"), name
                if token.count():
                    token.first.click()
                    assert page.locator("#node tbody tr").count() > 0
                page.evaluate(USE_EVERYTHING)
                assert page.title() == "exact · opdscope", name
                assert page.locator("img").count() == 0
                assert page.locator("script").count() == 6  # the data and the report's own five
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name  # a long token bends, the page does not
