"""Screening: one teacher-forced pass per teacher over the measured rollouts, reduced over the vocabulary chunk by chunk.

Full-vocabulary rows live only within a chunk, so memory does not grow with the number of rollouts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

from opdscope.core.nulls import tempered
from opdscope.core.screening import ObjectiveRows, StudentRows, TeacherRows, compare_rows, reduce_rows
from opdscope.models.base import Encoding, ScoreRequest
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.records import Role, to_table

Array = Any

_BLOCK_BYTES = 1 << 20

_UNIT_ROWS = 64  # rollouts in a unit: each is read by every teacher, so a unit costs several times what it cost to sample


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

    def __init__(self, experiment: Experiment, responses: Sequence[Response], prompts: dict[tuple[str, str], tuple[int, ...]]) -> None:
        """Run every model over the responses.

        Args:
            experiment: Models and settings.
            responses: Responses grouped by question.
            prompts: Prompt token ids by (teacher, question) wherever the teacher has a context.
        """
        self._experiment = experiment
        self._rows: dict[str, int] = {}
        for response in responses:
            self._rows[response.question_id] = self._rows.get(response.question_id, 0) + len(response.positions)
        student_prompts = {q: experiment.student_prompts[q] for q in self._rows}
        self._student, self._student_offsets = self._encode("student", responses, student_prompts)
        self._teachers: dict[str, tuple[Encoding, dict[str, int]]] = {}
        for name in experiment.teachers:
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
        requests = [ScoreRequest(prompts[r.question_id], r.token_ids, r.positions) for r in responses]
        offsets: dict[str, int] = {}
        position = 0
        for response in responses:
            offsets.setdefault(response.question_id, position)
            position += len(response.positions)
        return model.scorer().encode(requests, self._experiment.watcher.tokens), offsets


def teacher_prompts(experiment: Experiment) -> dict[tuple[str, str], tuple[int, ...]]:
    """Prompt token ids by (teacher, question), wherever the context is available."""
    rows = experiment.run.table("contexts").to_pylist()
    return {(row["teacher"], row["question_id"]): tuple(row["prompt_token_ids"]) for row in rows if row["available"]}


def score_rollouts(experiment: Experiment) -> None:
    """Reduce student, teachers and nulls at every position of every measured rollout."""
    measured: dict[str, list[dict[str, Any]]] = {q.question_id: [] for q in experiment.questions}
    for row in experiment.run.table("rollouts").to_pylist():
        if row["role"] == Role.MEASURED:
            measured[row["question_id"]].append(row)
    prompts = teacher_prompts(experiment)
    blocks = experiment.question_blocks(experiment.config.rollouts.num_rollouts, _UNIT_ROWS)
    names = unit_names(len(blocks))

    def work(unit: int) -> int:
        questions = [experiment.questions[index].question_id for index in blocks[unit]]
        responses = [
            Response(q, row["rollout_index"], tuple(row["token_ids"]), tuple(range(len(row["token_ids"]))))
            for q in questions
            for row in measured[q]
        ]
        scores = Scores(experiment, responses, prompts)
        tables: dict[str, list[dict[str, Any]]] = {"student_positions": [], "teacher_positions": [], "scores": []}
        for question_id in questions:
            own = [r for r in responses if r.question_id == question_id]
            _reduce_question(experiment, scores, own, tables)
        for name in ("student_positions", "teacher_positions", "scores"):  # the last one marks the unit as done
            experiment.run.write(name, names[unit], to_table(name, tables[name]))
        return sum(len(r.token_ids) for r in responses) * (1 + len(experiment.teachers))

    sizes = [(name, len(block) * experiment.config.rollouts.num_rollouts) for name, block in zip(names, blocks, strict=True)]
    experiment.run_units("screening", "scores", sizes, work)


def _reduce_question(
    experiment: Experiment, scores: Scores, responses: Sequence[Response], tables: dict[str, list[dict[str, Any]]]
) -> None:
    taken_ids = np.array([token for r in responses for token in r.token_ids], dtype=np.int64)
    kept: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def keep(key: tuple[str, ...], rows: StudentRows | TeacherRows | ObjectiveRows, names: Sequence[str], places: slice) -> None:
        # copied into place: small arrays that live on between the large ones would keep the allocator from using their room again
        columns = kept.setdefault(key, {name: np.empty(len(taken_ids), dtype=np.float32) for name in names})
        for name in names:
            columns[name][places] = to_numpy(getattr(rows, name))

    def compare(student: StudentRows, taken: Array, teacher: str, logprobs: Array, places: slice) -> None:
        keep((teacher,), compare_rows(student, logprobs), _names(TeacherRows), places)
        for objective in experiment.config.objectives:
            keep((teacher, objective), reduce_rows(student, logprobs, taken, objective), _names(ObjectiveRows), places)

    for chunk in scores.chunks(responses[0].question_id):
        xp, pieces = array_namespace(chunk.student), blocks(chunk.student)
        students = [StudentRows.of(chunk.student[block]) for block in pieces]
        taken = xp.asarray(taken_ids[chunk.start : chunk.start + chunk.student.shape[0]], device=device(chunk.student))
        places = [slice(chunk.start + block.start, chunk.start + block.stop) for block in pieces]
        for block, place, student in zip(pieces, places, students, strict=True):
            keep((), student, ("entropy", "collision"), place)
            for null, temperature in experiment.config.nulls.temperatures.items():
                compare(student, taken[block], null, tempered(student.logprobs, temperature), place)
        for teacher, logprobs in chunk.teachers:
            for block, place, student in zip(pieces, places, students, strict=True):
                compare(student, taken[block], teacher, logprobs[block], place)
    bounds = np.cumsum([0, *(len(r.token_ids) for r in responses)])
    table_of = {0: "student_positions", 1: "teacher_positions", 2: "scores"}
    for key, columns in kept.items():
        labels = dict(zip(("teacher", "objective"), key, strict=False))
        for response, start, stop in zip(responses, bounds, bounds[1:], strict=False):
            identity = {"question_id": response.question_id, "rollout_index": response.rollout_index, **labels}
            tables[table_of[len(key)]].append({**identity, **{name: values[start:stop] for name, values in columns.items()}})


def to_numpy(values: Array) -> np.ndarray:
    """Any array on any device as numpy."""
    return np.asarray(to_device(values, "cpu"))


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
