"""Rollouts that a trainer wrote down give the series that the live monitor gave; what is no such dump is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fixtures.training import NOISE, arguments, chain_rows, model, right_answer, tokenizer
from opdscope.cli import app
from opdscope.errors import OpdscopeError, TrainingError
from opdscope.store import open_training_log
from opdscope.training import MonitoredDistillationTrainer, monitor_dump, watch
from opdscope.training.dump import read_dump

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [
        {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"},
        {"name": "self + answer", "privileged_context": "answer"},
        {"name": "self + solution", "privileged_context": "solution"},
    ],
    "task": {"kind": "chain", "num_questions": 64, "seed": 0},
    "objectives": ["reverse_kl"],
    "engine": {"verifier_workers": 1},
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run that learns nothing, its completions, and what the monitor said."""
    folder = tmp_path_factory.mktemp("live")
    run = MonitoredDistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(folder, log_completions=True, per_device_train_batch_size=64),
        train_dataset=chain_rows(), processing_class=tokenizer(), reward_func=right_answer, distillation_weight=0.0,
    )  # fmt: skip
    callback = watch(run, folder / "log", every=1, keep_best=False)
    run.train()
    return folder / "completions", callback.monitor.reading()


def test_a_dump_of_trl_gives_the_live_series(live: tuple[Path, Any], tmp_path: Path):
    done = monitor_dump(live[0], CONFIG, tmp_path)
    last, reading = open_training_log(tmp_path).table("training_steps").to_pylist()[-1], live[1]
    assert (done.num_steps, done.num_rollouts, done.num_unmatched) == (2, 128, 0)
    # the end-of-sequence token is lost: one of thirty, at which the student is nearly certain
    assert last["length"] == pytest.approx(reading.length - 1, abs=0.2)
    assert last["success"] == pytest.approx(reading.success)
    assert last["natural_gain"] == pytest.approx(reading.natural_gain, abs=reading.natural_gain_error)
    assert last["natural_gain_error"] == pytest.approx(reading.natural_gain_error, rel=0.2)


def test_a_dump_of_verl_is_read_from_the_command_line(live: tuple[Path, Any], tmp_path: Path):
    rows = pq.read_table(live[0] / "completions_00001.parquet").to_pylist()
    lines = [
        {"input": row["prompt"], "output": row["completion"], "gts": "", "score": float(i % 2), "step": 7} for i, row in enumerate(rows)
    ]
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "7.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {**lines[0], "input": "no question"}]))
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    command = [
        "monitor",
        "--from-dump",
        str(tmp_path / "dump"),
        "--config",
        str(tmp_path / "config.yaml"),
        "--log-dir",
        str(tmp_path / "log"),
    ]
    result = CliRunner().invoke(app, [*command, "--teacher", "self + answer", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "64 rollouts of 1 steps, teacher self + answer; 1 whose prompt holds no known question are left out." in result.output
    (row,) = open_training_log(tmp_path / "log").table("training_steps").to_pylist()
    assert (row["step"], row["context"], row["num_rollouts"]) == (7, "self + answer", 64)
    assert row["success"] == pytest.approx(0.5)
    shown = CliRunner().invoke(app, ["watch", str(tmp_path / "log"), "--once"])
    assert "Step 7 · reverse_kl · context self + answer" in shown.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "x", "response": "y"}\n',
            r"line 1: unknown layout: expected verl's keys input, output, gts, score and step, found",
        ),
        ("a.jsonl", '{"input": ', "line 1: not JSON"),
        ("a.jsonl", b'{"input": "\xff"}', "is not UTF-8"),
        ("a.jsonl", "\n", "the files hold no rollouts"),
        ("1.jsonl", '{"input": "x", "output": "y", "score": "high"}', "line 1: expected a number or nothing as the reward, found 'high'"),
        ("1.jsonl", '{"input": "x", "output": "y", "score": [1]}', r"line 1: expected a number or nothing as the reward, found '\[1\]'"),
        ("a.parquet", {"step": ["one"], "prompt": [""], "completion": [""]}, "expected whole numbers in the column step, found string"),
        ("a.jsonl", '{"input": "x", "output": "y", "score": 1}\n', "line 1: no step"),
        ("a.parquet", {"text": ["x"]}, "unknown layout: expected TRL's columns step, prompt and completion, found text"),
        ("a.parquet", b"nothing", "cannot be read as Parquet"),
        (
            "a.parquet",
            {"step": [1], "prompt": [""], "completion": [""], "f": [1.0], "g": [0.0]},
            r"several columns may be the reward \(f, g\)",
        ),
        ("a.txt", "x", "expected a JSONL or Parquet file of rollouts, or a folder of them, and found none"),
    ],
)
def test_a_dump_of_unknown_layout_is_refused(tmp_path: Path, name: str, content: Any, message: str):
    if isinstance(content, dict):
        pq.write_table(pa.table(content), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrainingError, match=message):
        read_dump(tmp_path)


def test_responses_that_are_empty_or_foreign_are_no_traceback(live: tuple[Path, Any], tmp_path: Path):
    row = pq.read_table(live[0] / "completions_00001.parquet").to_pylist()[0]
    lines = [{"input": row["prompt"], "output": text, "score": 1.0, "step": step} for step, text in ((1, None), (2.0, row["completion"]))]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    done = monitor_dump(tmp_path / "a.jsonl", CONFIG, tmp_path / "log")
    assert (done.num_steps, done.num_rollouts) == (2, 2)
    (tmp_path / "b.jsonl").write_text(json.dumps({**lines[1], "output": "日本"}))
    with pytest.raises(TrainingError, match="cannot encode the recorded response '日本'"):
        monitor_dump(tmp_path / "b.jsonl", CONFIG, tmp_path / "log")


@pytest.mark.parametrize(
    ("changes", "teacher", "message"),
    [
        ({"task": {"kind": "addition", "num_questions": 4}}, None, "no prompt holds any of the 4 questions of the configuration"),
        ({}, "nobody", "there is no teacher 'nobody' in the configuration; those there are: teacher"),
        ({}, "self + solution", "needs the student's attempts, and a dump has none that are kept apart"),
    ],
)
def test_a_configuration_that_does_not_fit_a_dump_is_refused(
    live: tuple[Path, Any], tmp_path: Path, changes: dict[str, Any], teacher: str | None, message: str
):
    with pytest.raises(OpdscopeError, match=message):
        monitor_dump(live[0], {**CONFIG, **changes}, tmp_path, teacher=teacher)
