"""Everything a diagnosis needs in memory: models, questions, verifier and the run directory."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from opdscope.config import Config, ExactTaskConfig, ModelConfig, PromptFormat, TeacherConfig
from opdscope.contexts import fill
from opdscope.errors import ModelError
from opdscope.models.base import Model, Sample, SampleRequest, require_same_vocabulary
from opdscope.models.exact import ReasoningWorld, TreeWorld, World, load_exact
from opdscope.models.packaged import resolve_model
from opdscope.pipeline.watching import Watcher
from opdscope.records import Outcome, Question
from opdscope.store import Run
from opdscope.tasks import Task, VerifierPool, VerifyItem

UNIT_ROWS = 256
"""Rollouts or continuations in a unit of work: what an interruption can lose. Part of the result's identity, not of the engine settings."""


@dataclass
class Experiment:
    """A configuration with its models loaded; every stage is a function of it."""

    config: Config
    """The resolved configuration."""
    run: Run
    """Where results go."""
    task: Task
    """Questions and verifier."""
    prompts: PromptFormat
    """Wording of the prompts."""
    student: Model
    """The policy."""
    teachers: dict[str, Model]
    """Model of each teacher, by the teacher's name; self-teachers hold the student."""
    verifiers: VerifierPool
    """Worker processes."""
    watcher: Watcher
    """Progress."""
    seeds: tuple[int | str, ...] = field(default=())
    """First parts of every derived seed."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """In the order of the task."""
        return self.task.questions

    @property
    def temperature(self) -> float:
        """Of the policy: sampling and every softmax."""
        return self.config.rollouts.temperature

    @property
    def max_length(self) -> int:
        """Most tokens in a response."""
        return self.config.rollouts.max_completion_length

    @functools.cached_property
    def student_prompts(self) -> dict[str, tuple[int, ...]]:
        """Prompt token ids by question."""
        return {q.question_id: self.render_student(q)[1] for q in self.questions}

    def render_student(self, question: Question) -> tuple[str, tuple[int, ...]]:
        """The student's prompt as rendered text and token ids."""
        return self.student.render_prompt(fill(self.prompts.plain, question=question.text), self.prompts.system)

    def sample(self, model: Model, requests: Sequence[SampleRequest]) -> list[list[Sample]]:
        """Continuations at the policy's temperature, with progress."""
        return model.sampler(self.config.engine.max_rows).sample(requests, self.temperature, self.watcher.tokens)

    def verify(
        self, question_ids: Sequence[str], responses: Sequence[Sequence[int]], finished: Sequence[bool]
    ) -> list[tuple[str, Outcome]]:
        """Text and outcome of each response. What the length limit cut is TRUNCATED and not shown to the verifier.

        Args:
            question_ids: Whose question each response answers.
            responses: Response token ids from the first one on.
            finished: Whether the end-of-sequence token was drawn.
        """
        by_id = {q.question_id: q for q in self.questions}
        texts = [self.student.decode(token_ids) for token_ids in responses]
        items = [
            VerifyItem(text, by_id[key].answer, by_id[key].metadata)
            for key, text, ended in zip(question_ids, texts, finished, strict=True)
            if ended
        ]
        verdicts = iter(self.verifiers.verify(items))
        return [(text, next(verdicts) if ended else Outcome.TRUNCATED) for text, ended in zip(texts, finished, strict=True)]

    def run_units(self, stage: str, table: str, units: Sequence[tuple[str, int]], work: Callable[[int], int]) -> None:
        """Do each unit of a stage that is not stored yet, in order.

        Args:
            stage: Name for people.
            table: The unit is done when its part of this table exists; `work` writes it last.
            units: Name and number of pieces of each unit.
            work: Does the unit of that index and returns the number of tokens it cost.
        """
        done = [self.run.has(table, name) for name, _ in units]
        self.watcher.start(stage, sum(size for _, size in units), sum(size for (_, size), ready in zip(units, done, strict=True) if ready))
        for index, ((name, size), ready) in enumerate(zip(units, done, strict=True)):
            if ready:
                continue
            started = time.perf_counter()
            num_tokens = work(index)
            self.run.record_time(stage, name, time.perf_counter() - started, num_tokens)
            self.watcher.advance(size)

    def question_blocks(self, rows_per_question: int, unit_rows: int = UNIT_ROWS) -> list[list[int]]:
        """Indices of questions in blocks of about `unit_rows` rows."""
        size = max(1, unit_rows // max(1, rows_per_question))
        return [list(range(start, min(start + size, len(self.questions)))) for start in range(0, len(self.questions), size)]


def unit_names(count: int) -> list[str]:
    """Names of units that sort in their order."""
    return [f"{index:06d}" for index in range(count)]


def load_models(config: Config) -> tuple[Model, dict[str, Model]]:
    """Student and teachers, each set of weights loaded once.

    Raises:
        ModelError: If a model is missing, cannot be used, or has another vocabulary than the student.
    """
    load = model_loader(config)
    student = load(config.student)
    teachers = {teacher.name: load(teacher) for teacher in config.teachers}
    for model in distinct(teachers.values()):
        if model is not student:
            require_same_vocabulary(student, model)
    return student, teachers


def model_loader(config: Config) -> Callable[[ModelConfig | TeacherConfig], Model]:
    """What loads the model of the student's or a teacher's section, each set of weights once; a teacher without a model is the student's."""
    loaded: dict[tuple[str, str, str | None], Model] = {}

    def load(spec: ModelConfig | TeacherConfig) -> Model:
        if isinstance(spec, TeacherConfig) and spec.teacher_model_name_or_path is None:
            spec = config.student
        name = spec.model_name_or_path if isinstance(spec, ModelConfig) else str(spec.teacher_model_name_or_path)
        key = (name, spec.dtype, spec.revision)
        if key not in loaded:
            loaded[key] = _load_model(config, spec, name)
        return loaded[key]

    return load


def _load_model(config: Config, spec: ModelConfig | TeacherConfig, name: str) -> Model:
    task = config.task
    if isinstance(task, ExactTaskConfig):
        return load_exact(name, _world(task))
    if name.startswith("exact:"):
        raise ModelError(f"{name!r} lives in an exact world and cannot answer the questions of task {task.kind!r}; use task.kind: exact")
    from opdscope.models.transformers import load_language_model  # the exact world runs without torch

    return load_language_model(
        resolve_model(name),
        dtype=spec.dtype,
        device=config.engine.device,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )


def _world(task: ExactTaskConfig) -> World:
    match task.world:
        case "reasoning":
            return ReasoningWorld(task.length, task.spacing, task.seed)
        case "tree":
            return TreeWorld(task.depth, task.seed)


def distinct(models: Iterable[Model]) -> list[Model]:
    """Each model once, in order."""
    return list({id(model): model for model in models}.values())


def describe_models(config: Config, student: Model, teachers: dict[str, Model]) -> dict[str, dict[str, str | int | None]]:
    """What the provenance records of each model; self-teachers are the student and not listed again."""
    named = {"student": student, **{name: model for name, model in teachers.items() if model is not student}}
    return {
        role: {
            "name": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "tokenizer_hash": model.tokenizer_hash,
            "num_parameters": model.num_parameters,
            "dtype": model.dtype,
            "engine": model.engine,
        }
        for role, model in named.items()
    }
