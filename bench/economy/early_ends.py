"""Cutting responses before their end: what it would save, and whether it would change what success means."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from page import Section

import opdscope
from opdscope.records import Outcome
from opdscope.tasks.embedded import EMBEDDED
from opdscope.tasks.verifiers import final_answer


def saved(num_questions: int, num_rollouts: int) -> Section:
    """On the embedded tasks, whose tokens are characters and whose verifier reads what follows the last `>`."""
    # the limit that the task recommends, and one that cuts most responses off
    limits = [(task.name, limit) for task in EMBEDDED.values() for limit in (task.max_completion_length, task.max_completion_length // 2)]
    found = [_measured(name, limit, num_questions, num_rollouts) for name, limit in limits]
    rows: list[list[Any]] = [[*place, *cells] for place, (cells, _) in zip(limits, found, strict=True)]
    checks = [
        (f"{name}, limit {limit}: no right response would be cut as hopeless", none)
        for (name, limit), (_, none) in zip(limits, found, strict=True)
    ]
    text = (
        f"{num_questions} questions, {num_rollouts} responses of the weak student each. *Hopeless*: tokens after the point from which too few are "
        "left under the limit to write what is missing of the right answer and to end; to cut them changes no success. *After the first answer*: "
        "tokens after the first `>` and the digits that follow it, the end excepted. *Changed*: responses whose success would be another if they "
        "were cut there."
    )
    return Section(
        "Early ends: what cutting would save",
        text,
        ["task", "limit", "tokens", "truncated", "hopeless", "after the first answer", "changed"],
        rows,
        checks,
    )


def _measured(task: str, limit: int, num_questions: int, num_rollouts: int) -> tuple[list[str], bool]:
    settings = {
        "student": {"model_name_or_path": f"embedded:{task}-student-weak"},
        "teachers": [{"name": "solution", "privileged_context": "answer"}],
        "task": {"kind": task, "num_questions": num_questions},
        "objectives": ["reverse_kl"],
        "rollouts": {"num_rollouts": num_rollouts, "num_demonstrations": 0, "max_completion_length": limit},
        "engine": {"device": "cpu"},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = opdscope.screen(settings, run_dir=Path(folder) / "run")
        answers = {row["question_id"]: row["answer"] for row in run.table("questions").to_pylist()}
        responses = run.table("rollouts").to_pylist()
    sizes, hopeless, after, changed = np.zeros((4, len(responses)))
    for k, row in enumerate(responses):
        text, answer, size = row["text"], answers[row["question_id"]], len(row["token_ids"])
        cut = next((n for n in range(len(text)) if tokens_to_success(text[:n], answer) > limit - n), size)
        first = _first_answer(text)
        right = final_answer(text[:first], answer) == Outcome.CORRECT
        sizes[k], hopeless[k], after[k] = size, size - cut, len(text) - first
        changed[k] = right != (row["outcome"] == Outcome.CORRECT)
    truncated = np.mean([row["outcome"] == Outcome.TRUNCATED for row in responses])
    shares = (truncated, hopeless.sum() / sizes.sum(), after.sum() / sizes.sum(), changed.mean())
    none = all(own == 0 for own, row in zip(hopeless, responses, strict=True) if row["outcome"] == Outcome.CORRECT)
    return [f"{sizes.sum():,.0f}", *(f"{share:.1%}" for share in shares)], none


def tokens_to_success(text: str, answer: str) -> int:
    """Fewest more tokens, the end included, with which a response that begins so can be right: none of fewer can.

    Example:
        >>> tokens_to_success("1+2=3;>", "42"), tokens_to_success("1+2=3;>4", "42"), tokens_to_success("1+2=3;>5", "42")
        (3, 2, 4)
    """
    _, mark, found = text.rpartition(">")
    written = found.strip()
    return len(answer) - len(written) + 1 if mark and answer.startswith(written) else len(answer) + 2


def _first_answer(text: str) -> int:
    """Where the first answer ends; the length of the text if there is none."""
    start = text.find(">")
    if start < 0:
        return len(text)
    digits = len(text[start + 1 :]) - len(text[start + 1 :].lstrip("0123456789"))
    return start + 1 + digits
