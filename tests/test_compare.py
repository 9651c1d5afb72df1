"""Runs side by side: what a difference is, when it is paired, that its intervals hold, and what is refused."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import opdscope
from fixtures.stored_runs import EXACT, exact_run, hostile_copy
from opdscope.cli import app
from opdscope.core.aggregation import clustered_mean, ratio
from opdscope.core.differences import Difference, paired_difference, simultaneous_differences, unpaired_difference
from opdscope.core.randomness import generator
from opdscope.errors import ConfigError, RunDirectoryError, ShapeError
from opdscope.report import render_comparison
from opdscope.store import Run, start_run
from opdscope.summary import compare_runs, summarize

QUESTIONS = {"kind": "exact", "world": "tree", "num_questions": 8}


def made(path: Path, **changes: Any) -> Run:
    return opdscope.diagnose(EXACT | {"task": QUESTIONS} | changes, run_dir=path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(folder: Path) -> Run:
    return made(folder / "base")


@pytest.fixture(scope="module")
def later(folder: Path) -> Run:
    """A better student on the same questions, and two of them more."""
    return made(folder / "later", student={"model_name_or_path": "exact:fair"}, task=QUESTIONS | {"num_questions": 10})


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Run:
    return made(folder / "elsewhere", task=QUESTIONS | {"seed": 5})


def with_count(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.where(np.isnan(values), np.nan, 1.0)], axis=-1)


def test_a_paired_difference_is_the_mean_of_the_questions_differences() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 12))
    second[3] = np.nan
    found = paired_difference(with_count(first), with_count(second), ratio)
    expected = clustered_mean(second - first, 0.9)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-12)
    assert (found.freedom, found.num_clusters) == (10.0, 11)
    (interval,) = simultaneous_differences([found], 0.9, generator(0))
    assert interval.low == pytest.approx(expected.low, rel=1e-12)


def test_an_unpaired_difference_is_welchs() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    first, second = np.full(30, np.nan), np.full(30, np.nan)
    first[:12], second[12:] = rng.normal(size=12), 3.0 * rng.normal(size=18) + 1.0
    found = unpaired_difference(with_count(first), with_count(second), ratio)
    reference = ttest_ind(second[12:], first[:12], equal_var=False).confidence_interval(0.9)
    (interval,) = simultaneous_differences([found], 0.9, generator(0))
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_a_question_that_both_have_moves_both_even_unpaired() -> None:
    values = np.random.default_rng(2).normal(size=20)
    found = unpaired_difference(with_count(values), with_count(values), ratio)
    assert (found.value, found.standard_error) == (0.0, 0.0)


def test_intervals_of_several_differences_hold_together() -> None:
    """300 experiments of 90 %: five binomial standard errors are 0.087. Bonferroni would cover more, single intervals 0.73."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(300):
        question = rng.normal(size=(40, 1))
        first, second = question + rng.normal(size=(40, 3)), question + rng.normal(size=(40, 3))
        own = [paired_difference(with_count(first[:25, k]), with_count(second[:25, k]), ratio) for k in range(2)]
        own = [Difference(d.value, np.r_[d.influence, np.zeros(15)], d.freedom, d.num_clusters) for d in own]
        apart = [np.where(np.arange(40) < 20, first[:, 2], np.nan), np.where(np.arange(40) >= 20, second[:, 2], np.nan)]
        own.append(unpaired_difference(with_count(apart[0]), with_count(apart[1]), ratio))
        held += all(e.low <= 0.0 <= e.high for e in simultaneous_differences(own, 0.9, rng))
    assert abs(held / 300 - 0.9) < 0.087


def test_what_is_undefined_has_no_interval_and_takes_part_in_none() -> None:
    values = np.random.default_rng(4).normal(size=10)
    nothing, one = np.full(10, np.nan), np.where(np.arange(10) == 0, values, np.nan)
    sound = paired_difference(with_count(values), with_count(values**2), ratio)
    undefined = paired_difference(with_count(values), with_count(nothing), ratio)
    single = unpaired_difference(with_count(one), with_count(values), ratio)
    alone, together = (simultaneous_differences(own, 0.9, generator(0))[0] for own in ([sound], [sound, undefined, single]))
    assert alone == together
    for broken in simultaneous_differences([undefined, single], 0.9, generator(0)):
        assert np.isnan(broken.low)
    with pytest.raises(ShapeError):
        paired_difference(np.zeros((2, 2)), np.zeros((3, 2)), ratio)
    with pytest.raises(ShapeError):
        unpaired_difference(np.zeros((2, 2)), np.zeros((3, 2)), ratio)


def test_runs_are_paired_on_the_questions_that_both_have(base: Run, later: Run) -> None:
    data = compare_runs([base, later])
    (pair,) = data["pairs"]
    assert pair == {"first": "base", "second": "later", "pairing": "paired", "num_shared": 8, "num_first": 8, "num_second": 10}
    success = [
        {q: np.mean([r["outcome"] == "correct" for r in run.table("rollouts").to_pylist() if r["question_id"] == q and r["role"] == "measured"])
         for q in run.table("questions")["question_id"].to_pylist()}
        for run in (base, later)
    ]  # fmt: skip
    change = np.array([success[1][q] - success[0][q] for q in success[0]])
    found = data["success"][0]["difference"]
    assert found["value"] == pytest.approx(change.mean(), rel=1e-12)
    assert found["standard_error"] == pytest.approx(change.std(ddof=1) / np.sqrt(8), rel=1e-9)
    assert found["value"] > 0  # a student that is right more often


def test_each_run_keeps_the_numbers_of_its_own_summary(base: Run, later: Run) -> None:
    data = compare_runs([base, later])
    for run in (base, later):
        own = {teacher["name"]: teacher for teacher in summarize(run.tables(), run.config).data["teachers"]}
        for teacher in data["teachers"]:
            shown = next(each for each in teacher["runs"] if each["run"] == run.path.name)
            same = own[teacher["name"]]
            for quantity in ("natural_gain", "gain_over_null", "natural_gain_per_sqrt_kl"):
                assert shown[quantity] == pytest.approx(same[quantity]), quantity
            assert shown["verdict"] == same["verdict"]
            # posterior draws are the same, so the alignments are
            assert shown["pooled_alignment"] == pytest.approx(same["targeted"]["all"]["pooled_alignment"], nan_ok=True)


def test_a_run_does_not_differ_from_its_copy(base: Run, folder: Path) -> None:
    shutil.copytree(base.path, folder / "copy")
    data = compare_runs([base, opdscope.open_run(folder / "copy")])
    for teacher in data["teachers"]:
        for quantity, (found,) in teacher["differences"].items():
            assert found["difference"]["value"] == 0.0, quantity
            assert not found["decided"]


def test_other_questions_are_not_paired_and_that_is_said(base: Run, elsewhere: Run) -> None:
    data = compare_runs([base, elsewhere])
    assert (data["pairs"][0]["pairing"], data["pairs"][0]["num_shared"]) == ("unpaired", 0)
    own = [run["success"] for run in data["runs"]]
    error = np.hypot(own[0]["standard_error"], own[1]["standard_error"])
    assert data["success"][0]["difference"]["standard_error"] == pytest.approx(error, rel=1e-9)
    text = printed(data)
    assert "are not paired: they have 0 questions in common" in text
    assert "task.seed was 0, now 5" in text


def test_more_than_two_runs_are_compared_in_every_pair_and_shown_against_the_first(base: Run, later: Run, elsewhere: Run) -> None:
    data = compare_runs([base, later, elsewhere])
    assert [(d["first"], d["second"]) for d in data["success"]] == [("base", "later"), ("base", "elsewhere"), ("later", "elsewhere")]
    text = printed(data)
    assert "later − base" in text
    assert "elsewhere − base" in text
    assert "elsewhere − later" not in text


def test_teachers_of_one_name_and_another_context_are_left_out_and_lone_ones_named(base: Run, folder: Path) -> None:
    teachers = [{"name": "good", "teacher_model_name_or_path": "exact:fair"}, {"name": "harmful", "privileged_context": "answer"},
                {"name": "new", "teacher_model_name_or_path": "exact:weak"}]  # fmt: skip
    other = made(folder / "others", teachers=teachers)
    data = compare_runs([base, other])
    assert not [teacher for teacher in data["teachers"] if teacher["name"] in ("harmful", "new")]
    notes = "; ".join(data["notes"])
    assert "'harmful' is left out: it is shown 'plain' in base, 'answer' in others" in notes
    assert "only others has a teacher 'new'" in notes
    assert "'good' is not the same model: exact:good in base, exact:fair in others" in notes


def test_runs_that_are_only_screened_and_limits_that_differ(base: Run, folder: Path) -> None:
    settings = {**EXACT, "task": QUESTIONS, "rollouts": {"num_rollouts": 12, "max_completion_length": 9}}
    screened = opdscope.screen(settings, run_dir=folder / "screened")
    data = compare_runs([base, screened])
    good = next(teacher for teacher in data["teachers"] if teacher["name"] == "good")
    assert good["differences"]["natural_gain"]
    assert "responses are cut at 256 tokens in base, 9 tokens in screened" in data["notes"][-1]
    assert "—" in printed(data)


def test_what_is_not_comparable_is_refused_with_what_to_do(base: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two runs, found 1"):
        compare_runs([base])
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([base, opdscope.open_run(base.path)])
    warm = made(folder / "warm", rollouts={"num_rollouts": 12, "temperature": 0.7})
    with pytest.raises(ConfigError, match=r"temperature 0\.7 .* at\s+1: .* compare runs of one temperature"):
        compare_runs([base, warm])
    forward = opdscope.screen(EXACT | {"task": QUESTIONS, "objectives": ["forward_kl"]}, run_dir=folder / "forward")
    with pytest.raises(ConfigError, match=r"has no objective 'reverse_kl' .*--objective: forward_kl"):
        compare_runs([base, forward])
    assert compare_runs([base, forward], "forward_kl")["objective"] == "forward_kl"
    sole = opdscope.screen(EXACT | {"task": QUESTIONS, "objectives": ["generalized_jsd(0.5)"]}, run_dir=folder / "sole")
    with pytest.raises(ConfigError, match="no objective in common"):
        compare_runs([base, sole])
    with pytest.raises(RunDirectoryError, match="holds no scores yet"):
        compare_runs([base, start_run(tmp_path / "empty", base.config)])


def test_the_command_prints_a_table_or_json(base: Run, later: Run) -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["compare", str(base.path), str(later.path)])
    assert text.exit_code == 0
    assert "Gain over null · reverse_kl" in text.stdout
    assert "paired on the 8 questions" in text.stdout
    data = json.loads(runner.invoke(app, ["compare", str(base.path), str(later.path), "--json", "--objective", "forward_kl"]).stdout)
    assert data == compare_runs([base, later], "forward_kl")


def test_hostile_runs_are_inert(tmp_path: Path) -> None:
    run = exact_run(tmp_path / "run")
    text = printed(compare_runs([run, hostile_copy(run, tmp_path / "\x1b[31mred")]))
    assert "\x1b" not in text
    assert "⟨U+001B⟩" in text


def printed(data: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=220, force_terminal=False).print(render_comparison(data))
    return stream.getvalue()
