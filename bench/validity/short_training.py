"""One short on-policy training with TRL's DistillationTrainer, and what it did to success on held-out questions."""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from configurations import BATCH_SIZE, HELD_OUT_QUESTIONS, STEPS, STUDENTS, TEACHERS, UNSOUND_TEACHERS, Configuration, Student
from datasets import Dataset
from held_out import held_out_questions, is_right, mask_threshold, prompt_of, success_of, success_of_files
from special_teachers import load, teacher_folder, tokenizer_of
from trl.trainer.distillation_config import DistillationConfig

from opdscope.config import EmbeddedTaskConfig
from opdscope.contexts import fill
from opdscope.records import Question
from opdscope.tasks import load_task
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT
from opdscope.training.distillation import MonitoredDistillationTrainer, self_teacher
from opdscope.training.loss import ScoredRows

FIRST_TRAINING_SEED = 100
CONTEXTS = ("answer", "reference_solution", "unrelated_solution")


def told(context: str) -> str:
    """Column of the teacher's prompt in a context; `answer` alone is what the reward compares with."""
    return f"told_{context}"


def training_rows(task: str, seed: int, count: int, held_out: Sequence[Question]) -> Dataset:
    """Questions that are not held out, with the prompts of every context; an unrelated solution is that of the next question."""
    forbidden = {question.text for question in held_out}
    drawn = load_task(EmbeddedTaskConfig(kind=task, num_questions=count + len(forbidden), seed=FIRST_TRAINING_SEED + seed)).questions
    questions = [question for question in drawn if question.text not in forbidden][: count + 1]
    rows: list[dict[str, str]] = []
    for question, following in itertools.pairwise(questions):
        shown = {"answer": question.answer, "reference_solution": question.solution, "unrelated_solution": following.solution}
        values = {"answer": {"answer": shown["answer"]}}
        values |= {name: {"solution": shown[name]} for name in CONTEXTS[1:]}
        prompts = {told(name): fill(getattr(EMBEDDED_PROMPT_FORMAT, name), question=question.text, **own) for name, own in values.items()}
        rows.append({"question_id": question.question_id, "prompt": prompt_of(question), "answer": question.answer, **prompts})
    return Dataset.from_list(rows)


def right_answers(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """TRL reward: 1 where the final answer is right."""
    return [float(is_right(text, expected)) for text, expected in zip(completions, answer, strict=True)]


@cache
def success_before(student: Student, seed: int) -> np.ndarray:
    """Of the starting student on the held-out questions of a seed."""
    questions = held_out_questions(student.task, seed, HELD_OUT_QUESTIONS)
    return success_of_files(student.model, questions, student.max_completion_length, seed)


def teacher_of(configuration: Configuration, student_model: Any, models: Path) -> tuple[Any, dict[str, Any]]:
    """The teacher's model, and the trainer's settings that make it what it is."""
    student, teacher = STUDENTS[configuration.student], {**TEACHERS, **UNSOUND_TEACHERS}[configuration.teacher]
    if teacher.kind == "model":
        paths = {"strong": f"embedded:{student.task}-teacher", "peer": student.peer}
        return load(paths.get(teacher.value) or str(teacher_folder(models, student, teacher.value))), {}
    if teacher.kind == "leaking":
        return load(str(teacher_folder(models, student, "leaking"))), {
            "teacher_prompts": {teacher.value: told(teacher.value)},
            "context": teacher.value,
        }
    own = self_teacher(student_model, live=False)
    if teacher.kind == "context":
        return own, {"teacher_prompts": {name: told(name) for name in CONTEXTS}, "context": teacher.value}
    return own, {"teacher_temperature": float(teacher.value)}


def mask_of(configuration: Configuration) -> Callable[[ScoredRows], torch.Tensor] | None:
    """Token weights of a configuration's mask."""
    if configuration.mask == "none":
        return None
    threshold = mask_threshold(STUDENTS[configuration.student])
    return lambda rows: (rows.entropy > threshold).float()


def arguments(folder: str, max_completion_length: int, learning_rate: float, seed: int, steps: int, **settings: Any) -> DistillationConfig:
    """TRL's settings: Adam at a constant rate, full softmax, nothing written."""
    defaults: dict[str, Any] = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": steps, "max_completion_length": max_completion_length, "learning_rate": learning_rate,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "top_k": 0, "seed": seed, "report_to": [], "logging_strategy": "no",
        "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return DistillationConfig(**{**defaults, **settings})


def build_trainer(
    configuration: Configuration,
    learning_rate: float,
    seed: int,
    models: Path,
    folder: str,
    steps: int = STEPS,
    rows: Dataset | None = None,
    settings: Mapping[str, Any] | None = None,
    **extra: Any,
) -> MonitoredDistillationTrainer:
    """The trainer of one run. `settings` go to TRL's configuration, `extra` to the trainer."""
    student = STUDENTS[configuration.student]
    model = load(student.model)
    teacher, options = teacher_of(configuration, model, models)
    if rows is None:
        rows = training_rows(student.task, seed, steps * BATCH_SIZE, held_out_questions(student.task, seed, HELD_OUT_QUESTIONS))
    if configuration.outcomes != "all":
        dropped = "incorrect" if configuration.outcomes == "correct" else "correct"
        options["outcome_weights"] = {dropped: 0.0}
    options.setdefault("token_weights", mask_of(configuration))
    return MonitoredDistillationTrainer(
        model=model, teacher_model=teacher, args=arguments(folder, student.max_completion_length, learning_rate, seed, steps, **(settings or {})),
        train_dataset=rows, processing_class=tokenizer_of(student.task), reward_func=right_answers, objective=configuration.objective,
        **{**options, **extra},
    )  # fmt: skip


def realised(student: Student, model: Any, seed: int) -> dict[str, float]:
    """Success before and after on the same questions under the same random numbers, and the error of their difference."""
    questions = held_out_questions(student.task, seed, HELD_OUT_QUESTIONS)
    before = success_before(student, seed)
    after = success_of(model, tokenizer_of(student.task), questions, student.max_completion_length, seed)
    difference = after - before
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": float(difference.mean()),
        "change_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }


def train_once(configuration: Configuration, learning_rate: float, seed: int, models: Path, **options: Any) -> dict[str, Any]:
    """Train, measure, and say how long it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(configuration, learning_rate, seed, models, folder, **options)
        trainer.train()
    seconds = time.perf_counter() - started
    return {**realised(STUDENTS[configuration.student], trainer.model, seed), "training_seconds": round(seconds, 2)}
