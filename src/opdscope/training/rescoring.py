"""`opdscope monitor --from-dump`: recorded rollouts through the scorer and the live monitor, into the same records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opdscope.config import Config, load_config
from opdscope.contexts import build_context, fill
from opdscope.core.screening import StudentRows, compare_rows, of_tokens, reduce_rows
from opdscope.errors import TrainingError
from opdscope.models.base import Model, ScoreRequest
from opdscope.pipeline import Silent, Watcher
from opdscope.pipeline.experiment import load_models
from opdscope.records import Outcome
from opdscope.tasks import Task, VerifierPool, VerifyItem, load_task
from opdscope.training.dump import DumpedRollout, match_questions, read_dump
from opdscope.training.log import Recorder, reading_rows
from opdscope.training.loss import ScoredRows
from opdscope.training.monitor import FreeMonitor

_CHUNK_ROWS = 256


@dataclass(frozen=True)
class Rescored:
    """What became of a dump."""

    log_dir: Path
    """Where the records are."""
    teacher: str
    """Whose gain it is."""
    num_steps: int
    """Steps of the dump."""
    num_rollouts: int
    """Rollouts that were rescored."""
    num_unmatched: int
    """Rollouts whose prompt holds none of the questions; left out."""


def monitor_dump(
    dump: str | Path, config: Any, log_dir: str | Path, *, teacher: str | None = None, reward: str | None = None,
    overrides: Sequence[str] = (), half_life: float = 20.0, watcher: Watcher | None = None,
) -> Rescored:  # fmt: skip
    """Rescore a dump of rollouts and write the series that the live monitor would have written.

    Args:
        dump: See :func:`opdscope.training.dump.read_dump`.
        config: Student, teachers, questions and prompts; the first objective is taken.
        log_dir: Where the records go.
        teacher: Which teacher; None takes the first one.
        reward: Column of the reward, where there are several. Rewards that a dump lacks come from the task's verifier.
        overrides: `key=value` pairs that change the configuration.
        half_life: Of the series, in steps.
        watcher: Hears about progress.

    Raises:
        OpdscopeError: If dump, configuration and models do not fit each other.
    """
    settings = load_config(config, overrides)
    task = load_task(settings.task)
    rollouts = read_dump(dump, reward)
    flat = [rollout for group in rollouts.values() for rollout in group]
    places = match_questions(flat, [question.text for question in task.questions])
    if not any(place is not None for place in places):
        raise TrainingError(
            f"{dump}: no prompt holds any of the {len(task.questions)} questions of the configuration, such as {task.questions[0].text!r}; "
            "use the question set that the run was trained on"
        )
    rescorer = _Rescorer(settings, task, teacher)
    _verify(task, settings, [rollout for rollout, place in zip(flat, places, strict=True) if place is not None], rescorer.verified)
    monitor, recorder, listener = FreeMonitor(half_life=half_life, budget=1.0), Recorder(log_dir), watcher or Silent()
    recorder.log.rewind(-1)
    place_of = {id(rollout): place for rollout, place in zip(flat, places, strict=True)}
    listener.start("rescoring", len(flat), 0)
    for step, group in rollouts.items():
        known = [(rollout, place) for rollout in group if (place := place_of[id(rollout)]) is not None]
        rows = rescorer.rows(known) if known else None
        if rows is not None:
            monitor.observe(rows, torch.ones_like(rows.signal))
        monitor.end_step()
        monitor.flush()
        state = {
            "objective": settings.objectives[0],
            "context": rescorer.teacher,
            "distillation_weight": 1.0,
            "monitor_share": float("nan"),
        }
        for name, row in reading_rows(step, monitor.reading(), state):
            recorder.add(name, row)
        listener.advance(len(group))
    recorder.write(max(rollouts), now=True)
    unmatched = sum(place is None for place in places)
    return Rescored(Path(log_dir), rescorer.teacher, len(rollouts), len(flat) - unmatched, unmatched)


def _verify(task: Task, config: Config, rollouts: Sequence[DumpedRollout], verified: dict[int, float]) -> None:
    """Outcomes of rollouts that have no reward, by the identity of the rollout."""
    missing = [rollout for rollout in rollouts if rollout.reward is None]
    verified.update((id(rollout), rollout.reward) for rollout in rollouts if rollout.reward is not None)
    if not missing:
        return
    places = match_questions(missing, [question.text for question in task.questions])
    questions = [task.questions[place] for place in places if place is not None]
    items = [VerifyItem(rollout.response, q.answer, q.metadata) for rollout, q in zip(missing, questions, strict=True)]
    with VerifierPool(task.verifier, config.engine.verifier_workers, config.engine.verifier_deadline_seconds) as pool:
        outcomes = pool.verify(items)
    values = {Outcome.CORRECT: 1.0, Outcome.UNVERIFIABLE: float("nan")}
    verified.update((id(rollout), values.get(outcome, 0.0)) for rollout, outcome in zip(missing, outcomes, strict=True))


class _Rescorer:
    """Student and one teacher over responses to known questions."""

    def __init__(self, config: Config, task: Task, teacher: str | None) -> None:
        names = [own.name for own in config.teachers]
        if teacher is not None and teacher not in names:
            raise TrainingError(f"there is no teacher {teacher!r} in the configuration; those there are: {', '.join(names)}")
        self.teacher = teacher or names[0]
        self.verified: dict[int, float] = {}
        self._config, self._task = config, task
        self._shown = next(own for own in config.teachers if own.name == self.teacher)
        self._prompts = config.prompt or task.prompt_format
        self._student, teachers = load_models(config)
        self._teacher = teachers[self.teacher]
        if not hasattr(self._student, "tokenizer"):
            raise TrainingError(f"{self._student.name!r} has no tokenizer to encode recorded texts with; use a language model")
        if self._teacher_prompt(0) is None:
            raise TrainingError(
                f"teacher {self.teacher!r} is shown {self._shown.privileged_context!r}, which needs the student's attempts, and a dump has "
                "none that are kept apart; choose a teacher that is shown the question or the answer alone"
            )

    def _teacher_prompt(self, place: int) -> tuple[int, ...] | None:
        text = build_context(self._shown.privileged_context, place, self._task.questions, self._prompts, {}).text
        return None if text is None else self._teacher.render_prompt(text, self._prompts.system)[1]

    def _encoded(self, response: str) -> tuple[int, ...]:
        model: Any = self._student
        try:
            return tuple(model.tokenizer.encode(response, add_special_tokens=False))
        except Exception as error:  # a tokenizer's own errors have no common type
            raise TrainingError(
                f"the tokenizer of {model.name!r} cannot encode the recorded response {response[:80]!r} ({error}); is the student of the "
                "configuration the one that wrote the dump?"
            ) from error

    def rows(self, known: Sequence[tuple[DumpedRollout, int]]) -> ScoredRows | None:
        """Tokens of one step's rollouts, as the trainer's loss would show them; None if all are empty."""
        responses = [self._encoded(rollout.response) for rollout, _ in known]
        if not any(responses):
            return None
        own = [self._student.render_prompt(fill(self._prompts.plain, question=self._task.questions[p].text), self._prompts.system)[1]
               for _, p in known]  # fmt: skip
        others = [self._teacher_prompt(place) for _, place in known]
        columns = self._columns(responses, own, [prompt or () for prompt in others])
        lengths = torch.tensor([len(response) for response in responses])
        tensors = {name: torch.cat([torch.as_tensor(np.asarray(part)) for part in parts]) for name, parts in columns.items()}
        return ScoredRows(
            row=torch.repeat_interleave(torch.arange(len(known)), lengths),
            position=torch.cat([torch.arange(int(length)) for length in lengths]),
            outcomes=torch.tensor([self.verified[id(rollout)] for rollout, _ in known], dtype=torch.float32),
            has_context=torch.ones(len(known), dtype=torch.bool),
            questions=torch.tensor([place for _, place in known]),
            num_rows=len(known),
            **tensors,
        )

    def _columns(
        self, responses: Sequence[tuple[int, ...]], own: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]
    ) -> Mapping[str, list[Any]]:
        def encode(model: Model, prompts: Sequence[tuple[int, ...]]) -> Any:
            pairs = zip(prompts, responses, strict=True)
            return model.scorer().encode([ScoreRequest(prompt, ids, tuple(range(len(ids)))) for prompt, ids in pairs])

        student, teacher = encode(self._student, own), encode(self._teacher, others)
        taken, temperature = np.array([token for ids in responses for token in ids]), self._config.rollouts.temperature
        names = ("token_ids", "student_logprob", "teacher_logprob", "entropy", "divergence", "reverse_kl", "signal")
        parts: dict[str, list[Any]] = {name: [] for name in names}
        for start in range(0, student.num_rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, student.num_rows)
            rows = StudentRows.of(student.logprobs(start, stop, temperature))
            other = teacher.logprobs(start, stop, temperature).to(rows.logprobs.device)
            ids = torch.from_numpy(taken[start:stop]).to(rows.logprobs.device)
            compared = compare_rows(rows, other)
            reduced = reduce_rows(rows, other, ids, self._config.objectives[0])
            values = (ids, of_tokens(rows.logprobs, ids), of_tokens(other, ids), rows.entropy, compared.reverse_kl, compared.reverse_kl,
                      reduced.taken_signal)  # fmt: skip
            for name, value in zip(names, values, strict=True):
                parts[name].append(value.cpu())
        return parts
