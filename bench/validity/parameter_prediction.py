"""Alignment in the student's parameters of every configuration, masks and outcome filters included; no response is sampled for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from configurations import Configuration, Student
from held_out import mask_threshold

from opdscope.core.parameters import parameter_alignment
from opdscope.models.base import ScoreRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import load_language_model
from opdscope.models.transformers.parameter_gradients import LogitGraph, Sketch
from opdscope.pipeline.diagnosis import open_experiment
from opdscope.pipeline.experiment import Experiment
from opdscope.pipeline.gradients import IDEAL, NUM_GROUPS, advantages, batches, directions, measured_rows, whole_response
from opdscope.pipeline.nulls import null_teachers
from opdscope.pipeline.scores import Scores, teacher_prompts
from opdscope.records import Outcome
from opdscope.store import Run

_BATCH_TOKENS = 1024


def parameter_predictions(run: Run, student: Student, configurations: Sequence[Configuration]) -> dict[str, dict[str, float]]:
    """Parameter alignment of each configuration by its name, with the ends of its 90 % interval."""
    threshold = mask_threshold(student)
    with open_experiment(run.config, run.path, (), None) as experiment:
        model = load_language_model(resolve_model(student.model), device="cpu", trainable=True)
        sketch = Sketch(list(model.model.parameters()), model.num_parameters, 0)  # as long as the vector: exact
        rollouts = measured_rows(run)
        groups = np.array_split(np.array(list(rollouts)), NUM_GROUPS)
        found = [_group(experiment, model, sketch, [rollouts[q] for q in group], configurations, threshold) for group in groups]
    ideal = np.array([own[""] for own in found])
    result: dict[str, dict[str, float]] = {}
    for configuration in configurations:
        alignment = parameter_alignment(ideal, np.array([own[configuration.name] for own in found]), 0.9).alignment
        result[configuration.name] = {
            "parameter alignment": alignment.value,
            "parameter alignment low": alignment.low,
            "parameter alignment high": alignment.high,
        }
    return result


def _group(
    experiment: Experiment,
    model: Any,
    sketch: Sketch,
    questions: Sequence[Sequence[dict[str, Any]]],
    configurations: Sequence[Configuration],
    threshold: float,
) -> dict[str, np.ndarray]:
    """Mean gradients over a group's questions by configuration; the ideal one under the empty name."""
    prompts, nulls = teacher_prompts(experiment), null_teachers(experiment)
    sums: dict[str, Any] = {}
    for rows in questions:
        gain_of = advantages(rows)
        right = {row["rollout_index"]: row["outcome"] == Outcome.CORRECT for row in rows}
        for batch in batches(rows, _BATCH_TOKENS):
            responses = [whole_response(row) for row in batch]
            prompt = experiment.student_prompts[responses[0].question_id]
            graph = LogitGraph(model, [ScoreRequest(prompt, r.token_ids, r.positions) for r in responses], experiment.temperature)
            student = graph.logprobs
            spread = torch.sum(-torch.exp(student) * student, dim=-1) > threshold
            sizes = [len(r.token_ids) for r in responses]
            gains, correct = (np.repeat([of[r.rollout_index] for r in responses], sizes) for of in (gain_of, right))
            scores = Scores(experiment, responses, prompts)
            for key, direction in directions(experiment, scores, student, responses, gains, nulls):
                if key == IDEAL:
                    _add(sums, "", sketch(graph.pull_back(direction)), len(rows) * len(questions))
                for own in configurations:
                    if (own.teacher, own.objective) == key:
                        kept = torch.ones(len(direction)) if own.mask == "none" else spread.float()
                        if own.outcomes != "all":
                            kept = kept * torch.from_numpy(correct == (own.outcomes == "correct"))
                        _add(sums, own.name, sketch(graph.pull_back(direction * kept[:, None])), len(rows) * len(questions))
    return {name: total.numpy().astype(np.float64) for name, total in sums.items()}


def _add(sums: dict[str, Any], name: str, value: torch.Tensor, count: int) -> None:
    sums[name] = sums[name] + value / count if name in sums else value / count
