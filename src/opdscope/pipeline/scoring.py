"""Screening: one teacher-forced pass per teacher over the measured rollouts, reduced over the vocabulary chunk by chunk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from opdscope.core.screening import StudentRows, compare_rows, of_tokens, reduce_rows
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.pipeline.looks import Look
from opdscope.pipeline.nulls import NullTeacher, RowKey, null_teachers
from opdscope.pipeline.scores import Array, Response, Scores, blocks, teacher_prompts, to_numpy
from opdscope.records import Role, to_table

_UNIT_ROWS = 64  # rollouts in a unit: each is read by every teacher, so a unit costs several times what it cost to sample


def score_rollouts(experiment: Experiment, look: Look) -> None:
    """Reduce student, teachers and nulls at every position of a look's measured rollouts."""
    measured: dict[str, list[dict[str, Any]]] = {q.question_id: [] for q in experiment.questions}
    for row in experiment.run.table("rollouts").to_pylist():
        if row["role"] == Role.MEASURED and look.start <= row["rollout_index"] < look.stop:
            measured[row["question_id"]].append(row)
    prompts, nulls = teacher_prompts(experiment), null_teachers(experiment)
    blocks = experiment.question_blocks(look.stop - look.start, _UNIT_ROWS)
    names = [look.prefix + name for name in unit_names(len(blocks))]

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
            _reduce_question(experiment, scores, own, nulls, tables)
        for name in ("student_positions", "teacher_positions", "scores"):  # the last one marks the unit as done
            experiment.run.write(name, names[unit], to_table(name, tables[name]))
        return sum(len(r.token_ids) for r in responses) * (1 + len(experiment.teachers))

    sizes = [(name, len(block) * (look.stop - look.start)) for name, block in zip(names, blocks, strict=True)]
    experiment.run_units(look.stage("screening"), "scores", sizes, work)


def _reduce_question(
    experiment: Experiment,
    scores: Scores,
    responses: Sequence[Response],
    nulls: Sequence[NullTeacher],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    taken_ids = np.array([token for r in responses for token in r.token_ids], dtype=np.int64)
    keys = [RowKey(r.question_id, r.rollout_index, t) for r in responses for t in r.positions]
    kept: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def keep(key: tuple[str, ...], values: Mapping[str, Array], places: slice) -> None:
        # copied into place: small arrays that live on between the large ones would keep the allocator from using their room again
        columns = kept.setdefault(key, {name: np.empty(len(taken_ids), dtype=np.float32) for name in values})
        for name, own in values.items():
            columns[name][places] = to_numpy(own)

    def compare(student: StudentRows, taken: Array, teacher: str, logprobs: Array, places: slice) -> None:
        log_ratio = of_tokens(logprobs, taken) - of_tokens(student.logprobs, taken)
        keep((teacher,), {**vars(compare_rows(student, logprobs)), "log_ratio": log_ratio}, places)
        for objective in experiment.config.objectives:
            keep((teacher, objective), vars(reduce_rows(student, logprobs, taken, objective)), places)

    for chunk in scores.chunks(responses[0].question_id):
        xp, pieces = array_namespace(chunk.student), blocks(chunk.student)
        students = [StudentRows.of(chunk.student[block]) for block in pieces]
        taken = xp.asarray(taken_ids[chunk.start : chunk.start + chunk.student.shape[0]], device=device(chunk.student))
        places = [slice(chunk.start + block.start, chunk.start + block.stop) for block in pieces]
        for block, place, student in zip(pieces, places, students, strict=True):
            own = {"logprob": of_tokens(student.logprobs, taken[block]), "entropy": student.entropy, "collision": student.collision}
            keep((), own, place)
            for null in nulls:
                compare(student, taken[block], null.name, null.rows(student.logprobs, keys[place]), place)
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
