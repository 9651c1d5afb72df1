"""Log-probabilities of student and teachers over the same responses, served question by question and chunk by chunk.

Full-vocabulary rows live only within a chunk, so memory does not grow with the number of rollouts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import device, to_device

from opdscope.models.base import Encoding, ScoreRequest
from opdscope.pipeline.experiment import Experiment

Array = Any

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Response:
    """A stored rollout and the positions of it that are wanted."""

    question_id: str
    """Its question."""
    rollout_index: int
    """Its index."""
    token_ids: tuple[int, ...]
    """Its tokens."""
    positions: tuple[int, ...]
    """Wanted positions, in order."""
    num_read_with_prompt: int = 0
    """First tokens that are read together with the prompt: responses that share them share that work. None of the wanted positions lies before."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one question with the log-probabilities of student, teachers and nulls."""

    start: int
    """Index of the first row among the question's rows."""
    student: Array
    """Log-probabilities, row × vocab, float32."""
    teachers: Iterator[tuple[str, Array]]
    """Name and log-probabilities of each available teacher; made one at a time."""


def blocks(rows: Array) -> list[slice]:
    """Full-vocabulary rows in pieces to compute with: small enough for the cache of a CPU core; all of them on another device."""
    num_rows, vocab_size = rows.shape
    on_cpu = getattr(device(rows), "type", "cpu") == "cpu"
    size = max(1, _BLOCK_BYTES // (4 * vocab_size)) if on_cpu else num_rows
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class Scores:
    """Hidden states of student and teachers over the same responses; serves log-probabilities question by question."""

    def __init__(
        self,
        experiment: Experiment,
        responses: Sequence[Response],
        prompts: dict[tuple[str, str], tuple[int, ...]],
        teachers: Sequence[str] | None = None,
    ) -> None:
        """Run every model over the responses.

        Args:
            experiment: Models and settings.
            responses: Responses grouped by question.
            prompts: Prompt token ids by (teacher, question) wherever the teacher has a context.
            teachers: Names of those that are asked; None asks all.
        """
        self._experiment = experiment
        self._rows: dict[str, int] = {}
        for response in responses:
            self._rows[response.question_id] = self._rows.get(response.question_id, 0) + len(response.positions)
        student_prompts = {q: experiment.student_prompts[q] for q in self._rows}
        self._student, self._student_offsets = self._encode("student", responses, student_prompts)
        self._teachers: dict[str, tuple[Encoding, dict[str, int]]] = {}
        for name in experiment.teachers if teachers is None else teachers:
            own = {q: prompts[name, q] for q in self._rows if (name, q) in prompts}
            self._teachers[name] = self._encode(name, [r for r in responses if r.question_id in own], own)

    def chunks(self, question_id: str) -> Iterator[Chunk]:
        """The rows of one question, at most `engine.chunk_rows` at a time."""
        size, temperature = self._experiment.config.engine.chunk_rows, self._experiment.temperature
        total, offset = self._rows[question_id], self._student_offsets[question_id]
        for start in range(0, total, size):
            stop = min(start + size, total)
            student = self._student.logprobs(offset + start, offset + stop, temperature)
            yield Chunk(start, student, self._teacher_rows(question_id, start, stop, student))

    def _teacher_rows(self, question_id: str, start: int, stop: int, student: Array) -> Iterator[tuple[str, Array]]:
        for name, (encoding, offsets) in self._teachers.items():
            if question_id in offsets:
                rows = encoding.logprobs(offsets[question_id] + start, offsets[question_id] + stop, self._experiment.temperature)
                yield name, to_device(rows, device(student))

    def _encode(self, name: str, responses: Sequence[Response], prompts: dict[str, tuple[int, ...]]) -> tuple[Encoding, dict[str, int]]:
        model = self._experiment.student if name == "student" else self._experiment.teachers[name]
        requests = [_request(prompts[r.question_id], r) for r in responses]
        offsets: dict[str, int] = {}
        position = 0
        for response in responses:
            offsets.setdefault(response.question_id, position)
            position += len(response.positions)
        return model.scorer().encode(requests, self._experiment.watcher.tokens), offsets


def _request(prompt: tuple[int, ...], response: Response) -> ScoreRequest:
    read = response.num_read_with_prompt
    positions = response.positions if read == 0 else tuple(position - read for position in response.positions)
    return ScoreRequest(prompt + response.token_ids[:read], response.token_ids[read:], positions)


def teacher_prompts(experiment: Experiment) -> dict[tuple[str, str], tuple[int, ...]]:
    """Prompt token ids by (teacher, question), wherever the context is available."""
    rows = experiment.run.table("contexts").to_pylist()
    return {(row["teacher"], row["question_id"]): tuple(row["prompt_token_ids"]) for row in rows if row["available"]}


def to_numpy(values: Array) -> np.ndarray:
    """Any array on any device as numpy."""
    return np.asarray(to_device(values, "cpu"))
