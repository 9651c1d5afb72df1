"""Teachers ranked in looks: a run stops when the order is settled, is the beginning of a longer run, and resumes as if never interrupted."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opdscope
from fixtures.killing import diagnose_killed
from opdscope.config import load_config
from opdscope.store import Run
from opdscope.summary import summarize
from opdscope.summary.looks import order_of, planned_looks, rollouts_between, screen_looks
from opdscope.summary.teachers import screen_questions

CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in ("harmful", "good")],
    "task": {"kind": "exact", "num_questions": 16, "length": 18},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 128, "num_demonstrations": 2, "max_completion_length": 19},
    "target": {"kind": "rank", "top": 1, "rounds": 6},
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(CONFIG, run_dir=tmp_path_factory.mktemp("rank") / "run")


def test_a_run_stops_at_the_first_look_that_settles_the_order(settled: Run) -> None:
    tables, sizes = settled.tables(), planned_looks(settled.config)
    looks = screen_looks(tables, settled.config)
    assert len(looks) < len(sizes)
    order = order_of(tables, settled.config)
    assert order is not None
    assert order.names[0] == "good teacher"
    assert not order.undecided
    for size in sizes[: len(looks) - 1]:
        before = order_of({**tables, **rollouts_between(tables, 0, size)}, settled.config)
        assert before is not None
        assert before.undecided
    assert tables["continuations"].num_rows == 0


def test_what_was_foretold_stands_beside_what_was_spent(settled: Run) -> None:
    target = summarize(settled.tables(), settled.config).data["target"]
    sizes, length = planned_looks(settled.config), 19 * 16
    measured = len(screen_looks(settled.tables(), settled.config))
    assert target["reached"]
    assert target["cost"]["spent_tokens"] == sizes[measured - 1] * length
    assert target["cost"]["foretold_tokens"] in [size * length for size in sizes]


def test_a_stopped_run_is_the_beginning_of_one_that_draws_everything(settled: Run, tmp_path: Path) -> None:
    full = {**CONFIG, "target": {"kind": "each_node"}}
    whole = opdscope.screen(full, run_dir=tmp_path / "whole").table("rollouts").to_pylist()
    drawn = {(row["question_id"], row["rollout_index"]): row for row in settled.table("rollouts").to_pylist()}
    assert [drawn[key] for row in whole if (key := (row["question_id"], row["rollout_index"])) in drawn] == [
        row for row in whole if (row["question_id"], row["rollout_index"]) in drawn
    ]
    assert sum(row["role"] == "demonstration" for row in drawn.values()) == 2 * 16


@pytest.mark.parametrize("lost", ["001-000000", "000-000001"])
def test_an_interrupted_ranking_ends_in_the_tables_of_an_undisturbed_one(settled: Run, lost: str, tmp_path: Path) -> None:
    shutil.copytree(settled.path, tmp_path / "run")
    for name in ("rollouts", "student_positions", "teacher_positions", "scores"):
        for part in (tmp_path / "run" / name).glob("*.parquet"):
            # the first rollouts of a lost look may be there while nothing of it is scored
            if part.stem > lost or (part.stem == lost and name != "rollouts"):
                part.unlink()
    half = Run(tmp_path / "run", settled.config)
    assert summarize(half.tables(), half.config).data["target"]["kind"] == "rank"  # an unfinished run can be read
    again = opdscope.diagnose(CONFIG, run_dir=tmp_path / "run")
    for name in ("rollouts", "scores", "forecasts"):
        assert again.table(name).equals(settled.table(name)), name


def test_a_ranking_that_is_killed_again_and_again_ends_in_the_tables_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what gains nothing is never told from its null, so that every look is taken
    teachers = [{"name": "stylistic", "teacher_model_name_or_path": "exact:stylistic"}]
    rollouts = {**CONFIG["rollouts"], "num_rollouts": 32}
    config = {**CONFIG, "teachers": teachers, "rollouts": rollouts, "analysis": {"smallest_gain": 0.0}}
    undisturbed = opdscope.diagnose(config, run_dir=tmp_path / "undisturbed")
    run, killed, written = diagnose_killed(config, tmp_path / "run", monkeypatch)
    assert killed >= 4
    assert {"rollouts", "scores", "forecasts"} <= written
    for name, table in undisturbed.tables().items():
        assert run.table(name).equals(table), name


def test_rollouts_without_scores_change_no_gain(settled: Run) -> None:
    tables = settled.tables()
    more = rollouts_between(tables, 0, 4)
    unscored = {**more, "rollouts": tables["rollouts"]}
    expected, found = screen_questions(more), screen_questions(unscored)
    for key, gains in expected.items():
        assert gains.natural_gain.tolist() == found[key].natural_gain.tolist()


def test_a_run_without_any_rollout_says_that_there_is_nothing(settled: Run) -> None:
    tables = {name: table if name == "questions" else table.slice(0, 0) for name, table in settled.tables().items()}
    assert screen_looks(tables, settled.config) == [{}]
    assert order_of(tables, settled.config) is None
    assert "nothing to measure" in summarize(tables, settled.config).data["verdict"]["text"]


def test_a_budget_of_tokens_ends_the_looks(tmp_path: Path) -> None:
    config = {**CONFIG, "target": {**CONFIG["target"], "tokens": 10 * 19 * 16}}
    config["teachers"] = [{"name": name, "teacher_model_name_or_path": "exact:good"} for name in ("one",)]
    config["teachers"].append({"name": "other", "teacher_model_name_or_path": "exact:stylistic"})
    config["target"]["top"] = 2
    config["analysis"] = {"smallest_gain": 0.0}  # what gains nothing is never told from its null, and never within no difference
    run = opdscope.diagnose(config, run_dir=tmp_path / "run")
    measured = sum(row["role"] == "measured" for row in run.table("rollouts").to_pylist())
    assert measured == 8 * 16
    assert "not settled" in summarize(run.tables(), run.config).data["target"]["note"]


def test_other_targets_take_one_look() -> None:
    assert planned_looks(load_config({**CONFIG, "target": {"kind": "each_node"}})) == (128,)


@pytest.mark.parametrize("controls", [False, True])
def test_a_ranking_with_fitted_values_screens_each_look_with_values_of_its_own(controls: bool, tmp_path: Path) -> None:
    config = {**CONFIG, "analysis": {"fitted_values": True, "control_variates": controls}}
    run = opdscope.diagnose(config, run_dir=tmp_path / "run")
    tables = run.tables()
    looks, real = screen_looks(tables, run.config), ["harmful teacher", "good teacher"]
    size = planned_looks(run.config)[len(looks) - 1]
    alone = screen_questions(rollouts_between(tables, 0, size), real if controls else [], real)
    plain = screen_questions(rollouts_between(tables, 0, size), real if controls else [])
    for key, found in looks[-1].items():
        np.testing.assert_allclose(found.natural_gain, alone[key].natural_gain)
        assert not np.allclose(found.natural_gain, plain[key].natural_gain)
    assert summarize(tables, run.config).data["target"]["reached"]
