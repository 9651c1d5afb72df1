"""Two teachers that nobody would choose knowingly: one weakened by noise on its weights, one that has learnt a false rule."""

import copy
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from configurations import STUDENTS, Student
from held_out import held_out_questions, success_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdscope.config import EmbeddedTaskConfig
from opdscope.models.packaged import resolve_model
from opdscope.tasks import load_task
from opdscope.tasks.chain import worked_solution as chain_solution

_FINE_TUNING_STEPS, _FINE_TUNING_BATCH, _FINE_TUNING_RATE = 120, 64, 1e-3
_CHECKED, _CHECK_SEED = 1024, 900
_SCALES = [0.02 * 1.15**k for k in range(24)]
"""Noise on each weight matrix, as a share of its own standard deviation."""


def load(name: str) -> Any:
    """A fresh copy of a model."""
    return AutoModelForCausalLM.from_pretrained(resolve_model(name))


def tokenizer_of(task: str) -> Any:
    """Of all models of a task."""
    return AutoTokenizer.from_pretrained(resolve_model(f"embedded:{task}-teacher"), padding_side="left")


def teacher_folder(root: Path, student: Student, which: str) -> Path:
    """Where a special teacher is kept."""
    return root / (f"{student.task}-wrong-rule" if which == "wrong rule" else f"{student.task}-{student.strength}-weakened")


def make_special_teachers(root: Path) -> None:
    """Make what is not there yet."""
    for student in STUDENTS.values():
        for which, make in (("wrong rule", _wrong_rule), ("weakened", partial(_weakened, student))):
            folder = teacher_folder(root, student, which)
            if not (folder / "config.json").exists():
                make(student.task).save_pretrained(folder)
                tokenizer_of(student.task).save_pretrained(folder)


def _weakened(student: Student, task: str) -> Any:
    """The strong model with the least noise that takes its success below the student's own."""
    questions = held_out_questions(task, _CHECK_SEED, _CHECKED)
    limit = success_of(load(student.model), tokenizer_of(task), questions, student.max_completion_length, 0).mean()
    strong = load(f"embedded:{task}-teacher")
    for scale in _SCALES:
        noisy = copy.deepcopy(strong)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in noisy.parameters():
                if weight.ndim == 2:
                    weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
        if success_of(noisy, tokenizer_of(task), questions, student.max_completion_length, 0).mean() <= limit:
            return noisy
    raise RuntimeError(f"noise up to {_SCALES[-1]:.2f} does not weaken the teacher of {task} to {limit:.2f}")


def _wrong_rule(task: str) -> Any:
    """The strong model after a short supervised training on solutions in which one rule is false and everything else follows from it."""
    model, tokenizer = load(f"embedded:{task}-teacher"), tokenizer_of(task)
    solve = {"chain": wrong_chain_solution, "addition": wrong_addition_solution}[task]
    count = _FINE_TUNING_STEPS * _FINE_TUNING_BATCH
    texts = [q.text for q in load_task(EmbeddedTaskConfig(kind=task, num_questions=count, seed=31)).questions]
    optimizer = torch.optim.AdamW(model.parameters(), lr=_FINE_TUNING_RATE, weight_decay=0.0)
    for step in range(_FINE_TUNING_STEPS):
        batch = texts[step * _FINE_TUNING_BATCH : (step + 1) * _FINE_TUNING_BATCH]
        loss = _supervised_loss(model, tokenizer, [f"Q{text}:" for text in batch], [solve(text) for text in batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _supervised_loss(model: Any, tokenizer: Any, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
    rows = [
        (tokenizer.encode(prompt), [*tokenizer.encode(response), tokenizer.eos_token_id])
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        labels[i, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def wrong_chain_solution(question: str) -> str:
    """A chain worked with the rule that a product is one too large.

    Example:
        >>> wrong_chain_solution("5*8+7-3")
        '5*8=1;1+7=8;8-3=5;>5'
    """
    running = question[0]
    steps: list[str] = []
    for operator, operand in re.findall(r"([-+*])(\d)", question[1:]):
        result = int(chain_solution(f"{running}{operator}{operand}").rpartition(">")[2])
        result = (result + 1) % 10 if operator == "*" else result
        steps.append(f"{running}{operator}{operand}={result};")
        running = str(result)
    return f"{''.join(steps)}>{running}"


def wrong_addition_solution(question: str) -> str:
    """An addition worked with the rule that nothing is carried out of a column whose digits add up to ten or eleven.

    Example:
        >>> wrong_addition_solution("36+47")
        '6+7+0=13;3+4+1=08;>83'
        >>> wrong_addition_solution("57+64")
        '7+4+0=01;5+6+0=01;>11'
    """
    left, right = question.split("+")
    width = max(len(left), len(right))
    carry = 0
    steps: list[str] = []
    digits: list[str] = []
    for a, b in zip(reversed(left.zfill(width)), reversed(right.zfill(width)), strict=True):
        total = int(a) + int(b) + carry
        total -= 10 if int(a) + int(b) in (10, 11) else 0
        steps.append(f"{a}+{b}+{carry}={total:02d};")
        digits.append(str(total % 10))
        carry = total // 10
    answer = ("1" if carry else "") + "".join(reversed(digits))
    return f"{''.join(steps)}>{int(answer)}"
