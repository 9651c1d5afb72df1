"""The report and the terminal: what they hold, what they say of missing parts, and that text from models stays text."""

import html.parser
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fixtures.stored_runs import HOSTILE, exact_run, hostile_copy
from opdscope.cli import app
from opdscope.core.aggregation import clustered_statistic, ratio
from opdscope.errors import OpdscopeError, RunDirectoryError
from opdscope.report import read_chain, render_chain, render_summary, write_report
from opdscope.report.inert import clip, inert
from opdscope.store import Run, open_run, start_run
from opdscope.summary import measure_chains, node_scores, summarize

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return exact_run(tmp_path_factory.mktemp("exact") / "run")


@pytest.fixture(scope="module")
def hostile(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return hostile_copy(run, tmp_path_factory.mktemp("hostile") / "run")


class _Page(html.parser.HTMLParser):
    """Elements and attributes as a browser's parser would find them, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    @property
    def view(self) -> dict[str, Any]:
        place = next(i for i, (_, attributes) in enumerate(t for t in self.tags if t[0] == "script") if attributes.get("id") == "data")
        return json.loads(self.scripts[place])


def page_of(run: Run, path: Path, **options: Any) -> _Page:
    return _Page(write_report(run, path, **options).read_text(encoding="utf-8"))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def printed(renderable: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200, force_terminal=False).print(renderable)
    return stream.getvalue()


def test_the_report_holds_the_numbers_of_the_summary(run: Run, tmp_path: Path) -> None:
    view = page_of(run, tmp_path / "report.html").view
    data = summarize(run.tables(), run.config).data
    assert view["verdict"] == data["verdict"]
    for shown, own in zip(view["teachers"], (t for t in data["teachers"] if ": its entropy" not in t["name"]), strict=True):
        assert shown["name"] == own["name"]
        assert shown["gain_over_null"] == own["gain_over_null"]
        assert shown["split"]["correct"]["pooled_alignment"] == own["targeted"]["correct"]["pooled_alignment"]


def test_a_node_of_the_chain_view_has_the_gains_and_the_candidates_that_the_run_says(run: Run, tmp_path: Path) -> None:
    view = page_of(run, tmp_path / "report.html").view
    scores = {(r["node_id"], r["teacher"], r["objective"]): r for r in node_scores(run.tables(), run.config).to_pylist()}
    strata = run.table("strata").to_pylist()
    seen = 0
    for question in view["chains"]["questions"]:
        for path in question["paths"]:
            for node in path["nodes"]:
                name = f"{question['id']}/{path['rollout']}/{node['position']}"
                own = [row for row in strata if row["node_id"] == name and row["student_prob"] > 0]
                # four significant digits are kept
                assert np.allclose([s["p"] for s in node["strata"]], [row["student_prob"] for row in own], rtol=5e-4, atol=1e-12)
                for i, teacher in enumerate(view["chains"]["teachers"]):
                    gain = scores[name, teacher, view["settings"]["objective"]]["natural_gain"]
                    assert node["teachers"][str(i)][0] == pytest.approx(gain, rel=5e-4, abs=1e-12)
                    seen += 1
    assert seen


def test_pushes_of_a_candidate_add_up_to_nothing_over_a_node(run: Run) -> None:
    chains = measure_chains(run.tables(), run.config)
    assert chains is not None
    sums: dict[str, float] = {}
    for row in chains.strata.to_pylist():
        sums[row["node_id"]] = sums.get(row["node_id"], 0.0) + row["ideal"]
        assert row["success_low"] <= row["success_high"]
    # Σ p (S − V) = 0 in every draw, hence in the mean, as far as the p of a node add up to one: float64 rounding of sums of 5 terms
    assert np.allclose(list(sums.values()), 0.0, atol=1e-9)


def test_averages_along_the_chain_are_those_of_the_nodes_in_a_bin(run: Run) -> None:
    chains = measure_chains(run.tables(), run.config)
    assert chains is not None
    rows = [row for row in chains.scores.to_pylist() if row["teacher"] == "good"]
    paths: dict[str, dict[int, float]] = {}
    for row in run.table("nodes").to_pylist():
        paths.setdefault(row["question_id"], {})[row["rollout_index"]] = 1 / row["path_inclusion"]
    num_nodes = 0
    for found in chains.along["depth"]:
        sums: dict[str, np.ndarray] = {}
        for row in rows:
            if found.low <= row["position"] <= found.high:
                weight = row["weight"] / sum(paths[row["question_id"]].values())
                sums[row["question_id"]] = sums.get(row["question_id"], np.zeros(2)) + weight * np.array([row["natural_gain"], 1.0])
        expected = clustered_statistic(np.array(list(sums.values())), ratio, run.config.analysis.confidence)
        own = found.natural_gain["good"]
        assert [own.value, own.low, own.high] == pytest.approx([expected.value, expected.low, expected.high], rel=1e-9)
        num_nodes += found.num_nodes
    assert num_nodes == len(rows)


def test_thinning_keeps_so_many_questions_and_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    view = page_of(run, path, most_questions=2).view
    assert len(view["chains"]["questions"]) == 2
    assert f"2 of {view['chains']['num_questions']} questions" in path.read_text(encoding="utf-8")


def test_hostile_text_adds_no_element_and_no_script(run: Run, hostile: Run, tmp_path: Path) -> None:
    clean, attacked = page_of(run, tmp_path / "clean.html"), page_of(hostile, tmp_path / "hostile.html")
    assert len(clean.scripts) == len(attacked.scripts)
    assert not any(tag == "img" for tag, _ in attacked.tags)
    assert not any(name.startswith("on") for _, attributes in attacked.tags for name in attributes)
    assert not any("<" in script for script in attacked.scripts if script.startswith("{"))
    # the parser that read it back found the text itself: it was escaped, not removed
    assert any("</script><script>document.title='owned'</script>" in text for text in texts(attacked.view))


def test_hostile_characters_are_spelled_out_everywhere_in_the_report(hostile: Run, tmp_path: Path) -> None:
    path = write_report(hostile, tmp_path / "report.html")
    allowed = {"\n", "\t"}
    bad = {c for c in path.read_text(encoding="utf-8") if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c not in allowed}
    vendor = set((Path(write_report.__code__.co_filename).parent / "html/assets/vendor/plot.umd.min.js").read_text(encoding="utf-8"))
    assert bad <= vendor
    assert all(inert(text) == text for text in texts(page_of(hostile, path).view))


def test_very_long_texts_are_cut_and_say_so(hostile: Run, tmp_path: Path) -> None:
    view = page_of(hostile, tmp_path / "report.html").view
    assert max(map(len, texts(view["chains"]))) < 5_000
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert any("more characters)" in text for text in texts(view["chains"]))


def test_hostile_text_is_inert_in_the_terminal(hostile: Run) -> None:
    tables = hostile.tables()
    question = tables["questions"]["question_id"].to_pylist()[0]
    shown = printed(render_summary(summarize(tables, hostile.config).data)) + printed(render_chain(read_chain(hostile, question), 0, 0.9))
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
    assert "[31m" in shown  # the text is there, without the character that makes it an escape


def test_what_a_run_says_without_targeted_rollouts(run: Run, tmp_path: Path) -> None:
    screened = copy_without(run, tmp_path / "screened", ("nodes", "strata", "node_signals", "continuations"))
    path = write_report(screened)
    assert path == screened.path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert "screened only" in text
    assert _Page(text).view["chains"] is None


def copy_without(run: Run, path: Path, tables: tuple[str, ...]) -> Run:
    shutil.copytree(run.path, path)
    for name in tables:
        shutil.rmtree(path / name)
    return open_run(path)


def test_an_empty_run_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    empty = start_run(tmp_path / "empty", run.config)
    with pytest.raises(RunDirectoryError, match="holds no scores yet"):
        write_report(empty)


def test_show_takes_a_number_or_an_id_and_refuses_others(run: Run) -> None:
    ids = run.table("questions")["question_id"].to_pylist()
    by_number = RUNNER.invoke(app, ["show", str(run.path), "1"])
    by_id = RUNNER.invoke(app, ["show", str(run.path), ids[0]])
    assert by_number.exit_code == 0
    assert by_number.output == by_id.output
    assert re.search("[▲▼△▽]", by_number.output)
    assert (
        "Shaded by the natural gain of following harmful" in RUNNER.invoke(app, ["show", str(run.path), "1", "--teacher", "harmful"]).output
    )
    for arguments, words in ((["7"], "give a number from 1 to 6"), (["1", "--teacher", "nobody"], "there is no teacher 'nobody'")):
        with pytest.raises(OpdscopeError, match=words):
            RUNNER.invoke(app, ["show", str(run.path), *arguments], catch_exceptions=False)


def test_report_names_the_file_that_it_wrote(run: Run, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["report", str(run.path), "--out", str(tmp_path / "r.html")])
    assert result.output == f"Report: {tmp_path / 'r.html'}\n"
    assert (tmp_path / "r.html").stat().st_size > 0
    with pytest.raises(OpdscopeError, match="choose another file with --out"):
        RUNNER.invoke(app, ["report", str(run.path), "--out", str(tmp_path / "missing" / "r.html")], catch_exceptions=False)


def test_spelling_out_keeps_what_shows_itself() -> None:
    assert inert("plain ▲ é 漢字 العربية\n\t\u3000") == "plain ▲ é 漢字 العربية\n\t\u3000"
    assert inert(inert(HOSTILE)) == inert(HOSTILE)
    assert inert("\ud800") == "⟨U+D800⟩"
    assert clip("abc", 3) == "abc"
