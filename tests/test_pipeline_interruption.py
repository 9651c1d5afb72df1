"""A diagnosis killed again and again, at moments spread over its stages, ends in the summary of an undisturbed one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import opdscope

# large enough for two or more units of work in every stage that costs anything
CONFIG: dict[str, Any] = {
    "name": "killed",
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [
        {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"},
        {"name": "solution", "privileged_context": "solution"},
    ],
    "task": {"kind": "chain", "num_questions": 16},
    "rollouts": {"num_rollouts": 24, "num_demonstrations": 2, "max_completion_length": 48},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3, "continuations_per_node": 16},
    "engine": {"device": "cpu"},
}


def summary_without_times(command: list[str], run_dir: Path) -> str:
    shown = subprocess.run([*command, "summary", str(run_dir), "--json"], check=True, capture_output=True, text=True)
    data = json.loads(shown.stdout)
    del data["times"]
    return json.dumps(data)


@pytest.mark.slow
def test_a_diagnosis_killed_in_every_stage_ends_in_the_summary_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    opdscope.diagnose(CONFIG, run_dir=tmp_path / "undisturbed")
    command, run_dir, delays = [sys.executable, "-m", "opdscope.cli"], tmp_path / "run", np.random.default_rng(0)
    diagnose = [*command, "diagnose", str(config), "--run-dir", str(run_dir), "--quiet"]
    for table in ("rollouts", "scores", "continuations"):
        process = subprocess.Popen(diagnose, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list((run_dir / table).glob("*.parquet")) and process.poll() is None and time.monotonic() < deadline:
            pass
        with pytest.raises(subprocess.TimeoutExpired):  # somewhere within the next unit or the writing of a part
            process.wait(timeout=delays.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed: the test would show nothing"
        assert len(list((run_dir / table).glob("*.parquet"))) < len(list((tmp_path / "undisturbed" / table).glob("*.parquet")))
    subprocess.run(diagnose, check=True, capture_output=True, timeout=300)
    assert summary_without_times(command, run_dir) == summary_without_times(command, tmp_path / "undisturbed")
