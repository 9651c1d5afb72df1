"""Weights by token from a recipe's diagnosis against none: the same steps, several seeds, three teachers."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from configurations import BATCH_SIZE, HELD_OUT_QUESTIONS, STUDENTS, Configuration
from held_out import held_out_questions
from prediction import diagnosis
from record_names import TOKENS, UNWEIGHTED, WEIGHTED
from run_records import Records
from short_training import train_once, training_rows

import opdscope
from opdscope.advice.choice import Candidate, choose
from opdscope.advice.details import work_out
from opdscope.advice.files import TokenBins
from opdscope.advice.weights import Parts
from opdscope.store import Run
from opdscope.summary.looks import screen_looks
from opdscope.training.recipe import recipe_weights

_STEPS, _RATE, _SEEDS = 32, 1e-4, (0, 1, 2, 3)
_WARM_UP = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}
_CONFIGURATIONS = (
    Configuration("chain weak", "wrong rule"), Configuration("chain strong", "peer"), Configuration("addition strong", "strong"),
)  # fmt: skip
"""A teacher that is right at most tokens and wrong at some, one that is about as good as the student, and one that is nearly always right."""


def run_token_weights(records: Records, models: Path, work: Path, go_on: Callable[[], bool]) -> None:
    """Train what has no record yet, seed by seed."""
    for seed in _SEEDS:
        for configuration in _CONFIGURATIONS:
            for arm in (UNWEIGHTED, WEIGHTED):
                key = f"{TOKENS} | {configuration.name} | {arm} | {seed}"
                if key in records:
                    continue
                if not go_on():
                    return
                found = _run(configuration, arm, seed, models, work)
                records.add(TOKENS, key, {"arm": arm, "configuration": configuration.name, "seed": seed, **found})
                print(f"{key}: {found['change']:+.3f}", flush=True)


def _run(configuration: Configuration, arm: str, seed: int, models: Path, work: Path) -> dict[str, Any]:
    student, parts = STUDENTS[configuration.student], best_parts(configuration, models, work)
    weights = recipe_weights(TokenBins(parts.name, parts.edges, parts.weights), {}) if arm == WEIGHTED else None
    rows = training_rows(student.task, seed, _STEPS * BATCH_SIZE, held_out_questions(student.task, seed, HELD_OUT_QUESTIONS))
    found = train_once(configuration, _RATE, seed, models, steps=_STEPS, rows=rows, settings=_WARM_UP, token_weights=weights)
    improvement = parts.improvement
    return {
        **found, "feature": parts.name, "weights": np.round(parts.weights, 3).tolist(),
        "predicted": [improvement.value, improvement.low, improvement.high],
    }  # fmt: skip


@cache
def diagnosed(configuration: Configuration, models: Path, work: Path) -> tuple[Run, Candidate]:
    """The diagnosis that a recipe for one configuration is made from, and the configuration's teacher in it."""
    run = opdscope.diagnose(
        _diagnosis(configuration, models), run_dir=work / f"weights-{configuration.cluster.replace(' | ', '-').replace(' ', '-')}"
    )
    first = choose([configuration.teacher], screen_looks(run.tables(), run.config), run.config, "gain_per_push").candidates[0]
    return run, first


@cache
def best_parts(configuration: Configuration, models: Path, work: Path) -> Parts:
    """Weights by the feature that promises most on held-out questions, whether that is shown to be above zero or not."""
    run, first = diagnosed(configuration, models, work)
    return max(work_out(run.tables(), first, run.config).tokens, key=lambda parts: parts.improvement.value)


def _diagnosis(configuration: Configuration, models: Path) -> Mapping[str, Any]:
    base = diagnosis(STUDENTS[configuration.student], models)
    teachers = [teacher for teacher in base["teachers"] if teacher["name"] == configuration.teacher]
    return {**base, "teachers": teachers, "objectives": [configuration.objective]}
