"""Teachers that nobody would choose knowingly: weakened by noise on its weights, taught a false rule, softened, leaking what it is shown."""

import copy
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from configurations import FLATTENED, SHARPENED, STUDENTS, Student
from held_out import held_out_questions, success_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdscope.config import EmbeddedTaskConfig
from opdscope.contexts import fill
from opdscope.models.packaged import resolve_model
from opdscope.tasks import load_task
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT
from opdscope.tasks.chain import worked_solution as chain_solution

_FINE_TUNING_STEPS, _FINE_TUNING_BATCH, _FINE_TUNING_RATE = 120, 64, 1e-3
_LEAKING_STEPS = 80
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
    return root / (f"{student.task}-wrong-rule" if which == "wrong rule" else f"{student.task}-{student.strength}-{which}")


def make_special_teachers(root: Path) -> None:
    """Make what is not there yet."""
    for student in STUDENTS.values():
        for which, make in (("wrong rule", _wrong_rule), ("weakened", partial(_weakened, student))):
            folder = teacher_folder(root, student, which)
            if not (folder / "config.json").exists():
                _save(make(student.task), student.task, folder)


def make_collapse_teachers(root: Path, student: Student) -> None:
    """What only the study of collapses wants, as far as it is not there yet."""
    tempered = {"flattened": partial(_tempered, FLATTENED), "sharpened": partial(_tempered, SHARPENED)}
    for which, make in {**tempered, "leaking": _leaking}.items():
        folder = teacher_folder(root, student, which)
        if not (folder / "config.json").exists():
            _save(make(student), student.task, folder)


def _save(model: Any, task: str, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer_of(task).save_pretrained(folder)


def _tempered(temperature: float, student: Student) -> Any:
    """The student at another temperature, as a model of its own: its last norm scales the logits."""
    model = load(student.model)
    with torch.no_grad():
        model.model.norm.weight /= temperature
    return model


def _leaking(student: Student) -> Any:
    """The student after a short supervised training on prompts that show the answer: every second solution is the bare answer."""
    model, tokenizer = load(student.model), tokenizer_of(student.task)
    count = _LEAKING_STEPS * _FINE_TUNING_BATCH
    questions = load_task(EmbeddedTaskConfig(kind=student.task, num_questions=count, seed=33)).questions
    prompts = [fill(EMBEDDED_PROMPT_FORMAT.answer, question=q.text, answer=q.answer) for q in questions]
    solutions = [f">{q.answer}" if k % 2 else q.solution for k, q in enumerate(questions)]
    return _fine_tuned(model, tokenizer, prompts, solutions)


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
    return _fine_tuned(model, tokenizer, [f"Q{text}:" for text in texts], [solve(text) for text in texts])


def _fine_tuned(model: Any, tokenizer: Any, prompts: Sequence[str], solutions: Sequence[str]) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_FINE_TUNING_RATE, weight_decay=0.0)
    for start in range(0, len(prompts), _FINE_TUNING_BATCH):
        batch = slice(start, start + _FINE_TUNING_BATCH)
        loss = _supervised_loss(model, tokenizer, prompts[batch], solutions[batch])
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
