"""The whole diagnosis on an embedded model: resumption, invariance, the zero of a teacher that is the student, and users' errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import opdscope
from opdscope.errors import ConfigError, ModelError, OpdscopeError, RunDirectoryError
from opdscope.pipeline import make_plan
from opdscope.store import Run

SMALL: dict[str, Any] = {
    "name": "small",
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [
        {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"},
        {"name": "itself"},
        {"name": "solution", "privileged_context": "solution"},
    ],
    "task": {"kind": "chain", "num_questions": 4},
    "rollouts": {"num_rollouts": 6, "num_demonstrations": 3, "max_completion_length": 48},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3, "continuations_per_node": 8},
    "engine": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(SMALL, run_dir=tmp_path_factory.mktemp("finished") / "run")


def results(run: Run) -> dict[str, Any]:
    """The summary without its times, which alone may differ between runs."""
    data = json.loads(opdscope.summarize(run.tables(), run.config, run.times()).to_json())
    del data["times"]
    return data


def test_a_teacher_that_is_the_student_gains_nothing(finished: Run) -> None:
    itself = next(t for t in results(finished)["teachers"] if t["name"] == "itself")
    for objective in itself["objectives"].values():
        # both passes read the same tokens with the same kernels: what is left is float32 rounding, 1e-6 a position over at most 48 positions
        assert abs(objective["natural_gain"]["value"]) < 1e-4
        assert abs(objective["gain"]["value"]) < 1e-4
    for row in finished.table("scores").to_pylist():
        if row["teacher"] == "itself":
            assert np.abs(row["taken_gradient"]).max() < 1e-5


def test_a_second_run_repeats_no_finished_work(finished: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*.parquet")}
    again = opdscope.diagnose(SMALL, run_dir=finished.path)
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*.parquet")} == before


def test_engine_settings_change_no_result(finished: Run, tmp_path: Path) -> None:
    overrides = ["engine.max_rows=5", "engine.chunk_rows=7"]
    other = opdscope.diagnose(SMALL, run_dir=tmp_path / "run", overrides=overrides)
    for name in ("rollouts", "nodes", "strata", "continuations"):
        columns = [
            c for c in finished.table(name).column_names if c not in ("entropy", "inclusion", "student_prob", "squared_prob", "terminal")
        ]
        assert other.table(name).select(columns).equals(finished.table(name).select(columns)), name


def test_every_teacher_and_null_is_ranked_with_an_interval(finished: Run) -> None:
    data = results(finished)
    real = {"teacher", "itself", "solution"}
    nulls = {"sharpened", "flattened", "random logits", *(f"{name}: its entropy" for name in real)}
    assert {t["name"] for t in data["teachers"]} == real | nulls
    assert {t["name"] for t in data["teachers"] if t["is_null"]} == nulls
    assert len(data["comparisons"]) == 3
    assert set(data["teachers"][0]["targeted"]) == {"all", "correct", "incorrect"}
    assert data["spent"]["continuations"] == finished.table("continuations").num_rows


def test_nulls_have_the_entropy_and_the_divergence_of_the_teachers(finished: Run) -> None:
    rivals = {t["name"]: t["rivals"] for t in results(finished)["teachers"]}
    # matched on 8 positions of each rollout, compared on all: a few hundredths of a nat
    assert rivals["teacher: its entropy"]["entropy_gap"] == pytest.approx(rivals["teacher"]["entropy_gap"], abs=0.05)
    real = np.mean([rivals[name]["reverse_kl"] for name in ("teacher", "itself", "solution")])
    assert 0.5 * real < rivals["random logits"]["reverse_kl"] < 2 * real


def test_node_scores_have_one_row_per_node_teacher_and_objective(finished: Run) -> None:
    table = opdscope.node_scores(finished.tables(), finished.config)
    assert table.num_rows == finished.table("node_signals").num_rows
    assert len(table.to_pandas()) == table.num_rows


def test_stratum_probabilities_sum_to_one(finished: Run) -> None:
    strata = finished.table("strata").to_pandas()
    # sums of float64 numbers that were normalised in float64
    np.testing.assert_allclose(strata.groupby("node_id")["student_prob"].sum(), 1.0, atol=1e-9)


def test_a_run_directory_of_another_configuration_is_refused_with_what_differs(finished: Run) -> None:
    with pytest.raises(RunDirectoryError, match=r"rollouts\.num_rollouts was 6, now 7"):
        opdscope.screen(SMALL, run_dir=finished.path, overrides=["rollouts.num_rollouts=7"])


def test_a_run_that_failed_before_it_stored_anything_leaves_its_directory_free(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no/such/model"):
        opdscope.screen(SMALL, run_dir=tmp_path / "run", overrides=["student.model_name_or_path=/no/such/model"])
    run = opdscope.screen(SMALL, run_dir=tmp_path / "run", overrides=["task.num_questions=2", "rollouts.num_rollouts=2"])
    assert run.config.student.model_name_or_path == SMALL["student"]["model_name_or_path"]
    assert run.provenance()["models"]["student"]["name"].endswith("chain-student-weak")


def test_a_directory_that_is_no_run_is_left_alone_even_if_it_holds_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true")
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        opdscope.screen(SMALL, run_dir=tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


@pytest.mark.parametrize("world", ["embedded", "exact"])
def test_a_plan_counts_what_the_diagnosis_spends_and_writes_nothing(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["student.model_name_or_path=exact:itself", "teachers.0.teacher_model_name_or_path=exact:good"]
    overrides = [*changes, "task={kind: exact, num_questions: 4}"] if world == "exact" else []
    plan = make_plan(SMALL, overrides=overrides)
    samples = {stage.name: stage.num_samples for stage in plan.stages}
    assert samples["rollouts"] == 4 * (6 + 3)
    assert samples["screening"] == 4 * 6
    assert samples["continuations"] == 4 * 2 * 3 * 8
    assert plan.expected_seconds is not None
    assert plan.expected_seconds > 0
    assert not list(tmp_path.iterdir())


def test_all_rollouts_wrong_is_a_result(tmp_path: Path) -> None:
    run = opdscope.diagnose(SMALL, run_dir=tmp_path / "run", overrides=["rollouts.max_completion_length=2", "task.num_questions=2"])
    data = results(run)
    assert data["verdict"]["kind"] == "nothing to measure"
    assert data["student"]["share_truncated"] == 1.0
    skipped = next(t for t in data["teachers"] if t["name"] == "teacher")
    assert skipped["natural_gain"]["value"] == 0.0
    contexts = [row for row in run.table("contexts").to_pylist() if row["teacher"] == "solution"]
    assert not any(row["available"] for row in contexts)
    assert {row["reason"] for row in contexts} == {"none of the demonstrations is correct"}


@pytest.mark.parametrize(
    ("override", "kind", "sentence"),
    [
        ("rollout.num_rollouts=3", ConfigError, "did you mean 'rollouts'"),
        ("task.num_question=3", ConfigError, "did you mean 'num_questions'"),
        ("targeted.temperature=0.7", ConfigError, "remove targeted.temperature"),
        ("student.model_name_or_path=embedded:none", ModelError, "those there are"),
        ("student.model_name_or_path=/no/such/model", ModelError, "no/such/model"),
        ("objectives=[reverse_lk]", ConfigError, "expected reverse_kl"),
        ("rollouts.num_demonstrations=0", ConfigError, "set it to 4 or more"),
        ("task={kind: exact, lenght: 9}", ConfigError, "did you mean 'length'"),
        ("teachers.0.teacher_model_name_or_path=exact:good", ModelError, "use task.kind: exact"),
        ("task={kind: jsonl, path: /no/such.jsonl}", OpdscopeError, "no/such.jsonl"),
    ],
)
def test_a_users_error_is_a_sentence(override: str, kind: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=sentence):
        opdscope.screen(SMALL, run_dir=tmp_path / "run", overrides=[override])


def test_the_command_line_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "opdscope.cli", "diagnose", str(tmp_path / "none.yaml")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "there is no configuration file" in finished.stderr


def test_a_stored_run_is_summarised_without_torch(finished: Run) -> None:
    block = "type('Block', (), {'find_spec': staticmethod(lambda name, *_: exec('raise ImportError(name)') if name == 'torch' else None)})"
    code = f"import sys; sys.meta_path.insert(0, {block}); from opdscope.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "summary", str(finished.path), "--json"], capture_output=True, text=True, check=True
    )
    data = json.loads(shown.stdout)
    del data["times"]
    assert data == results(finished)


def test_free_rivals_agree_with_each_other_and_are_ranked_beside_the_gain(finished: Run) -> None:
    data = results(finished)
    rivals = {t["name"]: t["rivals"] for t in data["teachers"]}
    assert rivals["itself"]["overlap"] == pytest.approx(1.0)
    # float32 log-probabilities, 1e-6 each
    assert abs(rivals["itself"]["overlap_advantage"]) < 1e-5
    assert abs(rivals["itself"]["log_odds_value"]) < 1e-4
    assert 0 < rivals["teacher"]["overlap"] < 1
    assert rivals["teacher"]["log_odds_value"] > 0.05
    assert set(data["rival_rank_correlations"]) >= {"overlap", "overlap_advantage", "log_odds_value", "entropy_gap", "jensen_shannon"}
    # three real teachers are too few for a correlation; with the nulls there are enough of those that have the rival
    assert set(data["rival_rank_correlations"].values()) == {None}
    gains = {t["name"]: t["natural_gain"]["value"] for t in data["teachers"]}
    pairs = [(rivals[name]["reverse_kl"], gain) for name, gain in gains.items()]
    expected = spearmanr(*zip(*pairs, strict=True)).statistic
    assert data["rival_rank_correlations_with_nulls"]["reverse_kl"] == pytest.approx(expected)
    by_key = {(r["teacher"], r["question_id"], r["rollout_index"]): r for r in finished.table("teacher_positions").to_pylist()}
    for row in finished.table("scores").to_pylist():
        if row["objective"] == "reverse_kl":  # the log-ratio is the signal before its mean, which is minus the divergence, is taken off
            own = by_key[row["teacher"], row["question_id"], row["rollout_index"]]
            expected = np.array(row["taken_signal"]) - np.array(own["reverse_kl"])
            np.testing.assert_allclose(own["log_ratio"], expected, rtol=1e-4, atol=1e-4)
