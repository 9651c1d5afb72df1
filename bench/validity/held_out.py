"""Success on questions that no training sees."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from configurations import HIGH_ENTROPY_SHARE, Student

from opdscope.config import EmbeddedTaskConfig
from opdscope.contexts import fill
from opdscope.core.randomness import derive_seed
from opdscope.models.base import SampleRequest, ScoreRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import load_language_model
from opdscope.records import Question
from opdscope.tasks import load_task
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT

_FIRST_HELD_OUT_SEED = 9000
_ENTROPY_SEED, _ENTROPY_QUESTIONS = 700, 512


@cache
def held_out_questions(task: str, seed: int, count: int) -> tuple[Question, ...]:
    """The questions of one seed."""
    return load_task(EmbeddedTaskConfig(kind=task, num_questions=count, seed=_FIRST_HELD_OUT_SEED + seed)).questions


def prompt_of(question: Question) -> str:
    """The student's prompt."""
    return fill(EMBEDDED_PROMPT_FORMAT.plain, question=question.text)


def is_right(text: str, answer: str) -> bool:
    """What stands after the last `>` is the answer."""
    return text.rpartition(">")[2] == answer


def success_of_files(model: str, questions: tuple[Question, ...], max_length: int, seed: int, temperature: float = 1.0) -> np.ndarray:
    """Outcome of one response to each question, 0 or 1, under random numbers that depend on question and seed alone."""
    language_model = load_language_model(resolve_model(model), device="cpu")
    requests: list[SampleRequest] = []
    for question in questions:
        prompt = language_model.render_prompt(prompt_of(question))[1]
        requests.append(SampleRequest(prompt, len(prompt), (), (derive_seed(seed, "held out", question.question_id),), max_length))
    samples = language_model.sampler(256).sample(requests, temperature)
    pairs = zip(questions, (group[0] for group in samples), strict=True)
    return np.array([float(s.finished and is_right(language_model.decode(s.token_ids), q.answer)) for q, s in pairs])


def success_of(model: Any, tokenizer: Any, questions: tuple[Question, ...], max_length: int, seed: int) -> np.ndarray:
    """The same of a model in memory."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return success_of_files(str(Path(folder)), questions, max_length, seed)


@cache
def mask_threshold(student: Student) -> float:
    """Entropy in nats above which the mask keeps a token: a quantile over the student's own responses."""
    language_model = load_language_model(resolve_model(student.model), device="cpu")
    questions = held_out_questions(student.task, _ENTROPY_SEED, _ENTROPY_QUESTIONS)
    prompts = [language_model.render_prompt(prompt_of(question))[1] for question in questions]
    requests = [
        SampleRequest(prompt, len(prompt), (), (derive_seed(_ENTROPY_SEED, question.question_id),), student.max_completion_length)
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    responses = [group[0].token_ids for group in language_model.sampler(256).sample(requests, 1.0)]
    wanted = [ScoreRequest(prompt, response, tuple(range(len(response)))) for prompt, response in zip(prompts, responses, strict=True)]
    encoding = language_model.scorer().encode(wanted)
    rows = np.asarray(encoding.logprobs(0, encoding.num_rows, 1.0))
    return float(np.quantile(-np.sum(np.exp(rows) * rows, axis=1), 1.0 - HIGH_ENTROPY_SHARE))
