"""The report of a real run in a real browser: opened from disk, clicked, filtered, sorted, printed, and used by keyboard alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import opdscope
from fixtures.browser import chromium, opened, serious_faults
from opdscope.report import write_report

EMBEDDED: dict[str, Any] = {
    "name": "embedded",
    "student": {"model_name_or_path": "embedded:addition-student-weak"},
    "teachers": [
        {"name": "independent teacher", "teacher_model_name_or_path": "embedded:addition-teacher"},
        {"name": "self + answer", "privileged_context": "answer"},
        {"name": "self + solution", "privileged_context": "solution"},
    ],
    "task": {"kind": "addition", "num_questions": 6},
    "objectives": ["reverse_kl", "forward_kl"],
    "rollouts": {"num_rollouts": 10, "num_demonstrations": 3, "teacher_rollouts": 2, "max_completion_length": 64},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 5, "continuations_per_node": 8},
    "analysis": {"num_draws": 100},
    "engine": {"device": "cpu"},
}
SHOWN = "DATA.chains.questions[chosen.question]"
A4_WIDTH = 718
"""Of what is printed, in CSS pixels: 210 mm at 96 dots an inch, less the margins that a browser leaves."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(opdscope.diagnose(EMBEDDED, run_dir=tmp_path_factory.mktemp("embedded") / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    with opened(browser, report) as own:
        yield own


def shown_texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_it_opens_from_disk_with_every_section_and_chart(page: Any) -> None:
    assert page.title() == "embedded · opdscope"
    assert page.locator("section h1, section h2").count() == page.locator("main > section").count() >= 6
    assert page.locator("#forest svg circle, #forest svg path").count() > 0
    assert page.locator("#dumbbell svg").count() == 1
    assert page.locator("#along-charts svg").count() == 6
    assert page.locator("#chain .tok.node").count() > 0


def test_a_token_opens_its_candidates_and_closes_them(page: Any) -> None:
    question = page.evaluate(SHOWN)
    node = question["paths"][0]["nodes"][1]
    token = page.locator("#chain .path").first.locator(".tok.node").nth(1)
    token.click()
    panel = page.locator("#node")
    assert f"position {node['position']}" in panel.inner_text()
    assert panel.locator("tbody tr").count() == len(node["strata"])
    assert panel.locator(".bar.ideal, .bar.push").count() > 0
    assert panel.bounding_box()["y"] < 2 * 900  # near the token, not after every path
    panel.locator("details summary").first.click()
    assert re.match("(correct|incorrect|truncated): ", panel.locator(".samples li").first.inner_text())
    token.click()
    assert panel.inner_text() == ""


def test_filters_leave_what_they_say(page: Any) -> None:
    page.select_option("#outcome", "incorrect")
    assert page.locator("#chain .path h3").count() > 0
    assert all("· incorrect ·" in text for text in shown_texts(page, "#chain .path h3"))
    page.select_option("#outcome", "")
    assert len({text.split("·")[1] for text in shown_texts(page, "#chain .path h3")}) == 2
    before = page.locator("#chain .tok.node").evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))")
    page.select_option("#teacher", label="self + answer")
    after = page.locator("#chain .tok.node").evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))")
    assert len(before) == len(after)
    assert before != after
    shown = page.evaluate("chosen.question")
    page.locator("#next").click()
    assert page.locator("#question").input_value() == str(shown + 1)
    assert page.locator("#chain .question").inner_text() == f"Question {page.evaluate(SHOWN)['text']}"


def test_a_heading_sorts_both_ways_and_missing_numbers_stay_last(page: Any) -> None:
    head = page.locator("#teacher-table th", has_text="natural gain").first
    column = head.evaluate("th => th.cellIndex")
    cells = f"rows => rows.map(row => row.cells[{column}].dataset.value)"
    for direction, sign in (("descending", -1), ("ascending", 1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = page.locator("#teacher-table tbody tr").evaluate_all(cells)
        numbers = [float(value) for value in values if value]
        assert numbers == sorted(numbers, key=lambda value: sign * value)
        assert "" not in values[: len(numbers)]
    page.locator("#teacher-table th button", has_text="teacher").first.click()
    assert head.get_attribute("aria-sort") == "none"
    names = page.locator("#teacher-table tbody tr").evaluate_all("rows => rows.map(row => row.cells[0].dataset.value)")
    assert names == sorted(names)


def test_the_theme_changes_and_is_remembered(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.select_option("#theme", "dark")
    dark = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == dark
    assert page.locator("#theme").input_value() == "dark"


def tab_to(page: Any, selector: str) -> None:
    for _ in range(150):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never reaches {selector}")


def test_everything_can_be_done_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    tab_to(page, "#quantity")
    caption = page.locator("#forest svg").get_attribute("aria-label")
    page.keyboard.press("ArrowDown")
    assert page.locator("#forest svg").get_attribute("aria-label") != caption
    tab_to(page, "#teacher-table .sort")
    page.keyboard.press("Enter")
    assert page.locator("#teacher-table th[aria-sort='ascending']").count() == 1
    tab_to(page, "#question")
    shown = page.evaluate("chosen.question")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("chosen.question") == shown + 1
    assert page.locator("#chain .question").inner_text().endswith(page.evaluate(SHOWN)["text"])
    tab_to(page, ".tok.node")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    pressed = page.locator(".tok.node[aria-pressed='true']")
    assert pressed.evaluate("node => node === document.activeElement")
    assert page.locator("#node tbody tr").count() > 1
    page.keyboard.press("Escape")
    assert page.locator("#node").inner_text() == ""
    assert page.evaluate("document.activeElement.classList.contains('node')")


def test_paper_holds_everything_and_cuts_nothing_off(page: Any) -> None:
    page.locator("#chain .tok.node").first.click()
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    page.set_viewport_size({"width": A4_WIDTH, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    too_wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.evaluate(f"{too_wide}.map(e => e.outerHTML.slice(0, 120))") == []
    assert not page.locator("#question").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, report: Path, theme: str) -> None:
    with opened(browser, report, color_scheme=theme) as page:
        page.locator("#chain .tok.node").first.click()
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        assert serious_faults(page) == []
