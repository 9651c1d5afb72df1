"""The quickstart, followed word by word: own models in folders, own questions in a file, from check to report."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from opdscope.cli import app
from opdscope.models.packaged import resolve_model
from opdscope.tasks.chain import CHAIN, draw_question

QUICKSTART = Path(__file__).parents[1] / "docs" / "quickstart.md"
SMALL = ["rollouts.num_rollouts=6", "rollouts.max_completion_length=48", "targeted.nodes_per_path=2", "analysis.num_draws=100"]


def test_the_quickstart_leads_from_own_files_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in {"chain-student-weak": "my-model", "chain-teacher": "my-bigger-model"}.items():
        shutil.copytree(resolve_model(f"embedded:{name}"), folder)
    rng = np.random.default_rng(7)
    texts = dict.fromkeys(draw_question(rng) for _ in range(10))
    lines = [json.dumps({"question": text, "answer": CHAIN.answer(text)}) for text in texts]
    Path("own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    # the page's two pieces of configuration: the file, and what a model without a chat template needs besides
    file, besides = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", QUICKSTART.read_text(encoding="utf-8"), re.DOTALL))
    file |= {"task": file["task"] | besides["task"], "prompt": besides["prompt"]}
    Path("own.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    small = [part for each in SMALL for part in ("--set", each)]
    for command in (["check", "own.yaml", *small], ["diagnose", "own.yaml", "--quiet", *small], ["report", "runs/own"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception}"
    assert Path("runs/own/report.html").stat().st_size > 100_000
