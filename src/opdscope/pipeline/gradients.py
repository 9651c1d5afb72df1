"""Ideal and distillation gradients of a screened run, carried to the student's parameters; no response is sampled."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from opdscope.core.gradients import distillation_gradient
from opdscope.core.parameters import LEAST_GROUPS
from opdscope.errors import ModelError, RunDirectoryError
from opdscope.models.base import ScoreRequest
from opdscope.models.packaged import resolve_model
from opdscope.pipeline.diagnosis import open_experiment
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.pipeline.nulls import NullTeacher, RowKey, null_teachers
from opdscope.pipeline.scores import Array, Response, Scores, teacher_prompts
from opdscope.pipeline.watching import Watcher
from opdscope.records import Outcome, Role, to_table
from opdscope.store import Run, open_run

NUM_GROUPS = 16
"""Groups of questions: intervals come from how they differ."""

NUM_COORDINATES = 8191
"""Of a sketch; a prime, so that the rows of no weight matrix fall on one another. Adds at most 0.011 to the error of a cosine."""

IDEAL = ("", "")
"""Stands for the ideal gradient, where others have a teacher and an objective."""


def carry_gradients(run_dir: str | Path, watcher: Watcher | None = None) -> Run:
    """Carry the gradients of a run's ordinary rollouts to the parameters of the student.

    One forward pass of the student over the measured rollouts, and a backward pass for the ideal gradient, for every teacher and for every null,
    each with every objective. Resumes by group of questions.

    Args:
        run_dir: A run that `screen` or `diagnose` has finished screening.
        watcher: Hears about progress.

    Returns:
        The run; its summary has a section on parameters now.

    Raises:
        RunDirectoryError: If the run is not screened yet, or has fewer than four questions.
        ModelError: If the student has no parameters, as in the exact worlds.
    """
    stored = open_run(run_dir)
    if stored.config.student.model_name_or_path.startswith("exact:"):
        raise ModelError("the student of an exact world is a table of probabilities without parameters; gradients need a transformer")
    questions = stored.table("questions", ["question_id"])["question_id"].to_pylist()
    scored = set(stored.table("scores", ["question_id"])["question_id"].to_pylist())
    if len(questions) < LEAST_GROUPS or not scored.issuperset(questions):
        raise RunDirectoryError(
            f"{stored.path} has {len(scored)} screened questions of {len(questions)}; expected all of at least {LEAST_GROUPS}: "
            "finish `opdscope screen` with its configuration first"
        )
    with open_experiment(stored.config, stored.path, (), watcher) as experiment:
        _carry(experiment)
        return experiment.run


def _carry(experiment: Experiment) -> None:
    from opdscope.models.transformers.loading import load_language_model
    from opdscope.models.transformers.parameter_gradients import Sketch

    spec = experiment.config.student
    student = load_language_model(
        resolve_model(spec.model_name_or_path),
        device=experiment.config.engine.device,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        trainable=True,
    )
    sketch = Sketch(list(student.model.parameters()), NUM_COORDINATES, experiment.config.seed)
    questions = [question.question_id for question in experiment.questions]
    groups = [list(group) for group in np.array_split(np.array(questions), min(NUM_GROUPS, len(questions)))]
    prompts, nulls, rollouts = teacher_prompts(experiment), null_teachers(experiment), measured_rows(experiment.run)
    having = {name: sum((name, q) in prompts for q in questions) for name in experiment.teachers}

    def work(unit: int) -> int:
        sums: dict[tuple[str, str], Any] = {}
        num_tokens = 0
        for question_id in groups[unit]:
            num_tokens += _question(experiment, student, sketch, rollouts[question_id], prompts, nulls, sums)
        rows = [
            {
                "group": unit, "teacher": teacher, "objective": objective, "num_questions": len(groups[unit]),
                "num_parameters": sketch.num_parameters,
                # each question counts alike, whatever the size of its group
                "coordinates": (total * (len(groups) / having.get(teacher, len(questions)))).cpu().numpy(),
            }
            for (teacher, objective), total in sums.items()
        ]  # fmt: skip
        experiment.run.write("parameter_gradients", unit_names(len(groups))[unit], to_table("parameter_gradients", rows))
        return num_tokens

    units = list(zip(unit_names(len(groups)), map(len, groups), strict=True))
    experiment.run_units("gradients", "parameter_gradients", units, work)


def _question(
    experiment: Experiment,
    student: Any,
    sketch: Any,
    rows: Sequence[dict[str, Any]],
    prompts: dict[tuple[str, str], tuple[int, ...]],
    nulls: Sequence[NullTeacher],
    sums: dict[tuple[str, str], Any],
) -> int:
    """Add a question's mean gradients over its rollouts to the sums; returns the tokens read."""
    from opdscope.models.transformers.parameter_gradients import LogitGraph

    gain_of = advantages(rows)
    passes = 2 + len(experiment.teachers)
    num_tokens = 0
    for batch in batches(rows, experiment.config.engine.chunk_rows):
        responses = [whole_response(row) for row in batch]
        prompt = experiment.student_prompts[responses[0].question_id]
        graph = LogitGraph(student, [ScoreRequest(prompt, r.token_ids, r.positions) for r in responses], experiment.temperature)
        own = graph.logprobs
        gains = np.concatenate([np.full(len(r.token_ids), gain_of[r.rollout_index]) for r in responses])
        scores = Scores(experiment, responses, prompts)
        for key, direction in directions(experiment, scores, own, responses, gains, nulls):
            found = sketch(graph.pull_back(direction)) / len(rows)
            sums[key] = sums[key] + found if key in sums else found
        num_tokens += passes * len(gains)
    return num_tokens


def directions(
    experiment: Experiment, scores: Scores, student: Array, responses: Sequence[Response], gains: np.ndarray, nulls: Sequence[NullTeacher]
) -> Iterator[tuple[tuple[str, str], Array]]:
    """The ideal gradient's direction on the logits of each row, and that of each (teacher, objective)."""
    xp = array_namespace(student)
    taken = xp.asarray(np.concatenate([np.array(r.token_ids, dtype=np.int64) for r in responses]), device=device(student))
    probs = xp.exp(student)
    ideal = -probs
    ideal[xp.arange(len(taken), device=device(student)), taken] += 1.0
    yield IDEAL, ideal * xp.asarray(gains, dtype=student.dtype, device=device(student))[:, None]
    keys = [RowKey(r.question_id, r.rollout_index, t) for r in responses for t in r.positions]
    for null in nulls:
        for objective in experiment.config.objectives:
            yield (null.name, objective), distillation_gradient(student, null.rows(student, keys), objective)
    parts: dict[str, list[Array]] = {}
    for chunk in scores.chunks(responses[0].question_id):
        for name, rows in chunk.teachers:
            parts.setdefault(name, []).append(rows)
    for name, rows in parts.items():
        for objective in experiment.config.objectives:
            yield (name, objective), distillation_gradient(student, xp.concat(rows), objective)


def whole_response(row: Mapping[str, Any]) -> Response:
    """A stored rollout with all of its positions."""
    return Response(row["question_id"], row["rollout_index"], tuple(row["token_ids"]), tuple(range(len(row["token_ids"]))))


def advantages(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Outcome of each rollout less the mean of the question's others; zero where there is no verdict or nothing to compare with."""
    known = {row["rollout_index"]: float(row["outcome"] == Outcome.CORRECT) for row in rows if row["outcome"] != Outcome.UNVERIFIABLE}
    total, count = sum(known.values()), len(known)
    found = dict.fromkeys((row["rollout_index"] for row in rows), 0.0)
    if count > 1:
        # of the rollouts with a verdict alone: over all of them a missing one would pull the mean to zero
        found |= {index: (value - (total - value) / (count - 1)) * len(rows) / count for index, value in known.items()}
    return found


def batches(rows: Sequence[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
    """Rollouts that together have at most so many tokens; one alone may have more."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        if batch and sum(len(each["token_ids"]) for each in batch) + len(row["token_ids"]) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def measured_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Stored rollouts that are measured, by question."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("rollouts", ["question_id", "rollout_index", "role", "token_ids", "outcome"]).to_pylist():
        if row["role"] == Role.MEASURED:
            found.setdefault(row["question_id"], []).append(row)
    return found
