"""The main grid: every configuration at every step size and seed, one record each; a truncated grid is still balanced."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configurations import (
    CONFIGURATIONS,
    EXCESSIVE,
    EXCESSIVE_RATE,
    FURTHER,
    GENTLE,
    GENTLE_BATCH,
    GENTLE_RATE,
    GENTLE_WARM_UP,
    HELD_OUT_QUESTIONS,
    SEEDS,
    STEP_SIZES,
    STEPS,
    STUDENTS,
    TOO_FAST,
    Configuration,
)
from held_out import held_out_questions
from record_names import GRID, grid_key
from run_records import Records
from short_training import train_once, training_rows


def ordered(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Students in turn, so that wherever time runs out all have about as many."""
    by_student = [[c for c in configurations if c.student == student] for student in STUDENTS]
    return [configuration for group in itertools.zip_longest(*by_student) for configuration in group if configuration is not None]


def run_grid(records: Records, models: Path, go_on: Callable[[], bool], further: bool = False) -> None:
    """Train what has no record yet, seed by seed, until `go_on` says no."""
    first, second, *rest = (*SEEDS,)
    # the small step size gets its seeds before the large one gets its second
    order = [(first, size) for size in STEP_SIZES] + [(seed, size) for size in STEP_SIZES for seed in (second, *rest)]
    plan = [
        (configuration, size, STEP_SIZES[size], seed)
        for seed, size in order
        for configuration in ordered(FURTHER if further else CONFIGURATIONS)
    ]
    if further:
        plan = [(configuration, EXCESSIVE, EXCESSIVE_RATE, SEEDS[0]) for configuration in ordered(TOO_FAST)] + plan
    for configuration, step_size, learning_rate, seed in plan:
        key = grid_key(configuration, step_size, seed)
        if key not in records:
            if not go_on():
                return
            found = train_once(configuration, learning_rate, seed, models)
            records.add(GRID, key, {**_labels(configuration), "step_size": step_size, "seed": seed, **found})
            print(f"{key}: {found['change']:+.3f} in {found['training_seconds']:.0f} s", flush=True)


def run_gentle(records: Records, models: Path, go_on: Callable[[], bool]) -> None:
    """The main configurations with less noise, seed by seed, until `go_on` says no."""
    for seed in SEEDS:
        for configuration in ordered(CONFIGURATIONS):
            key = grid_key(configuration, GENTLE, seed)
            if key in records:
                continue
            if not go_on():
                return
            task = STUDENTS[configuration.student].task
            rows = training_rows(task, seed, STEPS * GENTLE_BATCH, held_out_questions(task, seed, HELD_OUT_QUESTIONS))
            settings = {
                "per_device_train_batch_size": GENTLE_BATCH, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": GENTLE_WARM_UP,
            }  # fmt: skip
            found = train_once(configuration, GENTLE_RATE, seed, models, rows=rows, settings=settings)
            records.add(GRID, key, {**_labels(configuration), "step_size": GENTLE, "seed": seed, **found})
            print(f"{key}: {found['change']:+.3f} in {found['training_seconds']:.0f} s", flush=True)


def _labels(configuration: Configuration) -> dict[str, Any]:
    return {"configuration": configuration.name, **vars(configuration)}
