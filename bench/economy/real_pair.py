"""The same on a real pair of models, which lie in folders that the user names; what it found is kept in the repository."""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allocator import deciding
from page import Section
from transformer import HEAD, NEEDED, PLACED, UNIFORM, Readings

import opdscope
from opdscope.config import ReasoningGymTaskConfig
from opdscope.tasks import load_task

STUDENT, TEACHER = "OPDSCOPE_PAIR_STUDENT", "OPDSCOPE_PAIR_TEACHER"
"""Environment variables with the folders of the two models."""
_QUESTIONS, _SIZES = 12, [8, 16, 32]
_END = "Write the calculation as one equation and nothing else."


def given() -> bool:
    """Whether the folders are named."""
    return STUDENT in os.environ and TEACHER in os.environ


def gains() -> list[Section]:
    """Interval of each teacher's gain against tokens, and the share of decisions where teachers are ranked."""
    if not given():
        print(f"the part `pair` wants two folders with models of one family: set {STUDENT} and {TEACHER}", file=sys.stderr)
        raise SystemExit(2)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base = _settings(Path(folder) / "additions.jsonl")
        found = Readings()
        found.screened({**base, "rollouts": {**base["rollouts"], "num_rollouts": _SIZES[-1]}}, _SIZES, reduced=False)
        targeted = {"paths_per_outcome": 1, "nodes_per_path": 3}
        found.targeted(UNIFORM, {**base, "targeted": {**targeted, "uniform_share": 1.0, "continuations_per_node": 7 * 8}})
        found.targeted(PLACED, {**base, "targeted": targeted, "target": {"kind": "tokens", "tokens": 8_000}})
        with deciding() as seconds:
            run = opdscope.diagnose({**base, "target": {"kind": "rank"}}, run_dir=Path(folder) / "rank")
        took = sum(entry["seconds"] for entry in run.times() if entry["stage"].startswith(("rollouts", "screening")))
        success = opdscope.summarize(run.tables(), run.config).data["student"]["success"]["value"]
    minutes = (time.perf_counter() - started) / 60
    text = (
        f"A student of 0.5 B parameters and a teacher of 1.5 B of its family ({_name(STUDENT)}, {_name(TEACHER)}; bfloat16, CPU, transformers "
        f"{version('transformers')}), additions of two numbers of two or three digits, {_QUESTIONS} questions, the same seeds; success "
        f"{success:.2f}. *self + answer* is the student shown the result. All of it took {minutes:.0f} minutes of one core. {NEEDED}"
    )
    share = sum(seconds) / took
    checks = found.checks(f"screening, {_SIZES[-1]} rollouts a question", UNIFORM)
    checks.append((f"`rank`: deciding takes {share:.2%} of the time of generating and scoring, under 2 %", share < 0.02))
    return [Section("A real pair: interval of a teacher's gain against tokens", text, HEAD, found.rows, checks)]


def _name(variable: str) -> str:
    """What the model's folder says of it."""
    config = json.loads((Path(os.environ[variable]) / "config.json").read_text(encoding="utf-8"))
    return f"{config['model_type']}, {config['num_hidden_layers']} layers of {config['hidden_size']}"


def _settings(path: Path) -> dict[str, Any]:
    task = ReasoningGymTaskConfig(
        kind="reasoning_gym", dataset="basic_arithmetic", seed=5, num_questions=_QUESTIONS,
        options={
            "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 3, "operators": ["+"], "allow_parentheses": False, "allow_negation": False
        },
    )  # fmt: skip
    rows = [json.dumps({"question": question.text, "answer": question.answer}) for question in load_task(task).questions]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {
        "student": {"model_name_or_path": os.environ[STUDENT], "dtype": "bfloat16"},
        "teachers": [
            {"name": "1.5 B", "teacher_model_name_or_path": os.environ[TEACHER], "dtype": "bfloat16"},
            {"name": "self + answer", "privileged_context": "answer"},
        ],
        "task": {"kind": "jsonl", "path": str(path), "answer_pattern": r"(-?\d+)"},
        "prompt": {"plain": f"{{question}}\n{_END}", "answer": f"{{question}}\nThe correct result is {{answer}}.\n{_END}"},
        "objectives": ["reverse_kl"],
        "rollouts": {"num_rollouts": 16, "num_demonstrations": 0, "teacher_rollouts": 0, "max_completion_length": 32},
        "engine": {"device": "cpu", "verifier_workers": 1},
    }  # fmt: skip
