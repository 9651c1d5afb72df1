"""Several processes that train one model: one record, one mind, and nobody waits for ever."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from opdscope.store import open_training_log
from opdscope.training.monitor import FreeMonitor, StepRows
from opdscope.training.processes import Processes

FIXTURES = Path(__file__).parent


def rows(seed: int, num: int = 6) -> StepRows:
    rng = np.random.default_rng(seed)
    return StepRows(
        rng.normal(size=(num, 7)), rng.normal(size=(num, 24)), np.abs(rng.normal(size=24)), (rng.random(num) < 0.5).astype(float),
        np.arange(num), np.ones(num, dtype=bool),
    )  # fmt: skip


def test_what_two_processes_saw_of_a_step_is_one_step():
    apart, whole = FreeMonitor(is_shared=True), FreeMonitor()
    apart.take([{0: [rows(0)], 1: [rows(2)]}, {0: [rows(1)]}])
    for together in ([rows(0), rows(1)], [rows(2)]):
        whole._include(StepRows.together(together))
    assert str(apart.reading()) == str(whole.reading())  # as text, since NaN differs from itself
    assert whole.reading().num_rollouts == 18


def test_without_a_process_group_there_is_one_process():
    alone = Processes()
    assert (alone.count, alone.is_first, alone.gather(3), alone.from_first(4)) == (1, True, [3], 4)


def test_an_exchange_that_fails_leaves_each_process_to_itself(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the other one is gone")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", fail)
    processes = Processes()
    assert processes.gather(5) == [5]
    assert processes.count == 1
    assert processes.from_first(6) == 6
    assert "on its own from now on" in caplog.text


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize("kind", ["distillation", "grpo"])
def test_two_processes_read_all_rollouts_write_one_record_and_do_the_same(tmp_path: Path, kind: str):
    """A process that waited for the other in vain would outlast the time limit."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(FIXTURES / "fixtures" / "two_processes.py"),
    ]
    paths = [str(FIXTURES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path), kind], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"ended-{rank}.json").read_text()) for rank in (0, 1))
    assert all(first["parts"].values())
    assert all(second["parts"].values())
    assert (first["steps"], first["weight"], first["context"]) == (8, 0.5, "told")
    for name in ("steps", "weight", "context", "total"):
        assert first[name] == second[name]
    assert (first["logged"], second["logged"]) == (4, 0)
    tables = open_training_log(tmp_path / "log").tables()
    steps = tables["training_steps"].to_pylist()
    assert [row["step"] for row in steps] == [2, 4, 6, 8]
    # eight rollouts in each process at each step; the step at hand is read at the next one, and the context changed at step 4
    assert [row["num_rollouts"] for row in steps] == [16, 48, 16, 48]
    assert tables["training_probes"]["step"].to_pylist() == [0, 3, 6]
    assert [row["action"] for row in tables["training_actions"].to_pylist()] == ["lower_weight", "switch_context", "stop"]
    assert max(Counter((row["step"], row["axis"], row["low"]) for row in tables["training_bins"].to_pylist()).values()) == 1
    assert (tmp_path / "log" / "best" / "model.safetensors").is_file()
