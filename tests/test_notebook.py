"""A run in a notebook: its tables, plots and display, without torch; and the example notebook, executed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import opdscope
from fixtures.stored_runs import EXACT, exact_run, hostile_copy
from opdscope.errors import ConfigError, RunDirectoryError
from opdscope.notebook import Exploration, explore
from opdscope.store import start_run
from opdscope.summary import node_scores

EXAMPLE = Path(__file__).parents[1] / "examples" / "explore.ipynb"


@pytest.fixture(autouse=True)
def _no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    mpl.use("Agg")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    return explore(exact_run(tmp_path_factory.mktemp("exact") / "run").path)


def test_tables_hold_the_numbers_of_the_summary_with_their_intervals(shown: Exploration) -> None:
    frame = shown.teachers()
    first, data = frame.iloc[0], shown.summary.data["teachers"][0]
    assert first["teacher"] == data["name"]
    assert (first["natural_gain_low"], first["natural_gain_high"]) == (data["natural_gain"]["low"], data["natural_gain"]["high"])
    assert first["mean_score_correct_paths"] == data["targeted"]["correct"]["mean_score"]["value"]
    assert len(frame) == len(shown.summary.data["teachers"]) * 2  # objectives
    assert shown.scores().equals(node_scores(shown.run.tables(), shown.run.config).to_pandas())
    assert {"success", "success_low", "success_high"} <= set(shown.strata().columns)


def test_plots_show_every_teacher_and_every_bin(shown: Exploration) -> None:
    names = [label.get_text() for label in shown.plot_teachers().get_yticklabels()]
    assert any(name.startswith("good · ") for name in names)
    assert "random logits (null)" in names
    assert [label.get_text() for label in shown.plot_split().get_yticklabels()] == [
        t["name"] for t in shown.summary.data["teachers"] if not t["is_null"]
    ]
    for axis, plot in {"depth": shown.plot_depth, "entropy": shown.plot_entropy, "difficulty": shown.plot_difficulty}.items():
        ax = plot()
        own = shown.along(axis)
        assert len(ax.containers) == 2  # teachers
        assert len(ax.containers[0].lines[0].get_xdata()) == (own["teacher"] == "good").sum()
        assert plot(ax) is ax


def test_a_run_shows_itself_and_hostile_text_stays_text(shown: Exploration, tmp_path: Path) -> None:
    assert shown.summary.data["verdict"]["text"] in repr(shown)
    assert "<td" in shown._repr_html_()
    hostile = explore(hostile_copy(shown.run, tmp_path / "hostile"))
    html = hostile._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "‮" not in html
    hostile.plot_teachers()


def test_what_a_run_does_not_hold_is_said(shown: Exploration, tmp_path: Path) -> None:
    screened = explore(opdscope.screen(EXACT, run_dir=tmp_path / "screened"))
    assert len(screened.teachers())
    for ask in (screened.scores, screened.plot_split, screened.plot_depth):
        with pytest.raises(RunDirectoryError, match="opdscope diagnose"):
            ask()
    with pytest.raises(RunDirectoryError, match="holds no scores yet"):
        explore(start_run(tmp_path / "empty", screened.run.config)).teachers()
    with pytest.raises(ConfigError, match="no axis 'colour'; those there are: depth, entropy, difficulty"):
        shown.along("colour")


def test_a_missing_package_is_named_with_the_extra(shown: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"needs pandas, .*opdscope\[notebook\]"):
        shown.teachers()


def test_looking_at_a_run_loads_no_torch(shown: Exploration) -> None:
    code = f"import sys, opdscope; r = opdscope.explore({str(shown.run.path)!r}); r.teachers(); r._repr_html_(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_notebook_runs_on_a_small_demonstration(tmp_path: Path) -> None:
    small = ["task.num_questions=10", "rollouts.num_rollouts=8", "rollouts.teacher_rollouts=0", "targeted.nodes_per_path=3"]
    small += ["analysis.num_draws=100", "objectives=[reverse_kl]"]
    code = (
        "import nbformat, sys; from nbclient import NotebookClient; book = nbformat.read(sys.argv[1], 4); "
        "NotebookClient(book, timeout=120, kernel_name='python3').execute(); "
        "print(sum(bool(o.get('data', {}).get('image/png')) for c in book.cells for o in c.get('outputs', [])))"
    )
    demo: list[Any] = [sys.executable, "-m", "opdscope.cli", "demo", "--quiet"]
    subprocess.run(demo + [part for each in small for part in ("--set", each)], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(done.stdout) == 4  # plots
