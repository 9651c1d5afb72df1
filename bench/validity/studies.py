"""Decisions beside what they are compared with: dynamic against fixed weights, curriculum against shuffled, and runs that rules should stop."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from configurations import BATCH_SIZE, HELD_OUT_QUESTIONS, STUDENTS, Configuration
from datasets import Dataset
from held_out import held_out_questions, success_of, success_of_files
from prediction import diagnosis
from record_names import CURRICULUM, LEAST_FIRST, MOST_FIRST, RULES, SCHEDULE, SHUFFLED, WEIGHTS
from run_records import Records
from short_training import FIRST_TRAINING_SEED, build_trainer, realised, training_rows
from special_teachers import tokenizer_of
from token_weights import diagnosed
from transformers import TrainerCallback

import opdscope
from opdscope.core.schedule import Schedule
from opdscope.store import TrainingLog
from opdscope.summary import summarize
from opdscope.summary.teachers import screen_questions
from opdscope.training.callback import watch

_RATE, _WARM_UP = 1e-4, {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4}
_EVERY, _HALF_LIFE = 2, 4.0
STOP_RULES: Mapping[str, Any] = {
    "every": _EVERY,
    "least_rollouts": 2 * BATCH_SIZE,
    "rules": [
        {"name": "the teacher harms", "series": "natural_gain", "below": 0.0, "evaluations": 2, "then": {"action": "stop"}},
        {"name": "success falls", "series": "success", "falls_by": 0.0, "evaluations": 1, "then": {"action": "stop"}},
    ],
}
"""Stop when the gain is surely negative at two evaluations in a row, or success has surely fallen."""
DYNAMIC_RULES: Mapping[str, Any] = {
    "every": _EVERY,
    "least_rollouts": 2 * BATCH_SIZE,
    "rules": [
        {
            "name": "nothing left to gain", "series": "gain_over_null", "below": 0.0, "evaluations": 2, "cooldown": 2,
            "then": {"action": "lower_weight", "factor": 0.5},
        }
    ],
}  # fmt: skip
"""Halve the weight each time the gain is surely not above the null's."""
FIXED_WEIGHTS, HIGH_WEIGHTS = (0.5, 1.0, 2.0), (1.0, 3.0, 6.0)


@dataclass(frozen=True)
class Arm:
    """One way to run one study."""

    study: str
    name: str
    configuration: Configuration
    steps: int
    weight: float = 1.0
    """Factor of the learning rate."""
    rules: Mapping[str, Any] | None = None
    scheduled: bool = False
    """The weight follows a recipe's schedule."""
    order: str = ""
    """Of the questions; empty for the trainer's own shuffling."""
    traced: bool = False
    """Held-out success is measured at every evaluation of the rules."""
    seeds: tuple[int, ...] = (0, 1, 2)

    def key(self, seed: int) -> str:
        """Of its record."""
        return f"{self.study} | {self.configuration.name} | {self.name} | {seed}"


def _arms() -> list[Arm]:
    weak, strong = "chain weak", "chain strong"
    false = Configuration(weak, "wrong rule")
    arms = [
        Arm(RULES, "collapse: teacher that flattens", Configuration(strong, "flattened"), 24, 2.0, STOP_RULES, traced=True),
        Arm(RULES, "collapse: false rule, forward KL", Configuration(strong, "wrong rule", "forward_kl"), 24, 2.0, STOP_RULES, traced=True),
        Arm(RULES, "collapse: false rule, helps at first", Configuration(weak, "wrong rule"), 40, 2.0, STOP_RULES, traced=True),
        Arm(RULES, "collapse: weight 10 times too high", Configuration(strong, "strong"), 24, 10.0, STOP_RULES, traced=True),
    ]
    slow = "collapse, slowly: teacher that flattens", "collapse, slowly: false rule, forward KL"
    arms += [
        Arm(RULES, slow[0], Configuration(strong, "flattened"), 24, 0.3, STOP_RULES, traced=True),
        Arm(RULES, slow[1], Configuration(strong, "wrong rule", "forward_kl"), 24, 0.2, STOP_RULES, traced=True),
    ]
    healthy = [(weak, name) for name in ("strong", "peer", "self + solution", "self + answer", "sharpened")]
    healthy += [(strong, name) for name in ("strong", "self + solution")]
    arms += [Arm(RULES, "healthy", Configuration(*pair), 24, 1.0, STOP_RULES) for pair in healthy]
    arms += [Arm(WEIGHTS, f"fixed {weight:g}", false, 40, weight) for weight in FIXED_WEIGHTS]
    arms += [Arm(WEIGHTS, "dynamic from 1", false, 40, 1.0, DYNAMIC_RULES), Arm(WEIGHTS, "dynamic from 2", false, 40, 2.0, DYNAMIC_RULES)]
    useful = Configuration(weak, "strong")
    arms += [Arm(SCHEDULE, f"fixed {weight:g}", useful, 60, weight) for weight in HIGH_WEIGHTS]
    arms += [Arm(SCHEDULE, f"schedule from {weight:g}", useful, 60, weight, scheduled=True) for weight in HIGH_WEIGHTS[1:]]
    arms += [Arm(CURRICULUM, order, useful, 24, order=order, seeds=(0, 1, 2, 3)) for order in (SHUFFLED, LEAST_FIRST, MOST_FIRST)]
    return arms


ARMS = _arms()


def run_studies(records: Records, models: Path, go_on: Callable[[], bool]) -> None:
    """Run what has no record yet, seed by seed."""
    for seed in range(max(len(arm.seeds) for arm in ARMS)):
        for arm in ARMS:
            if seed in arm.seeds and arm.key(seed) not in records:
                if not go_on():
                    return
                found = run_arm(arm, seed, models)
                records.add(arm.study, arm.key(seed), {"arm": arm.name, "configuration": arm.configuration.name, "seed": seed, **found})
                print(f"{arm.key(seed)}: {found['change']:+.3f}, actions {found['actions'][:2]}", flush=True)


class _Trace(TrainerCallback):
    """Held-out success now and then."""

    def __init__(self, student_name: str, seed: int) -> None:
        self._student, self._seed = STUDENTS[student_name], seed
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % _EVERY == 0:
            self.points.append((state.global_step, self._change(kwargs["model"])))

    def _change(self, model: Any) -> float:
        student = self._student
        questions = held_out_questions(student.task, self._seed, HELD_OUT_QUESTIONS)[: HELD_OUT_QUESTIONS // 2]
        own = success_of(model, tokenizer_of(student.task), questions, student.max_completion_length, self._seed)
        return float(np.mean(own) - _success_of_first_half(student.name, self._seed))


@cache
def _success_of_first_half(student_name: str, seed: int) -> float:
    student = STUDENTS[student_name]
    questions = held_out_questions(student.task, seed, HELD_OUT_QUESTIONS)[: HELD_OUT_QUESTIONS // 2]
    return float(np.mean(success_of_files(student.model, questions, student.max_completion_length, seed)))


def run_arm(arm: Arm, seed: int, models: Path) -> dict[str, Any]:
    """Train one arm. In the study of rules they only report, so that what they would have prevented can be seen."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ordered_rows(arm, models) if arm.order else None
        settings = {**_WARM_UP, **({"shuffle_dataset": False} if arm.order else {})}
        trainer = build_trainer(
            arm.configuration, _RATE, seed, models, folder, steps=arm.steps, rows=rows, settings=settings, distillation_weight=arm.weight
        )
        trace = _Trace(arm.configuration.student, seed)
        if arm.traced:
            trainer.add_callback(trace)
        callback = None
        if arm.scheduled:
            schedule = _schedule(arm, models)
            callback = watch(trainer, Path(folder) / "log", schedule=schedule, every=_EVERY, half_life=_HALF_LIFE, keep_best=False)
        if arm.rules is not None:
            rules = {**arm.rules, "dry": arm.study == RULES}
            callback = watch(trainer, Path(folder) / "log", rules=rules, half_life=_HALF_LIFE, keep_best=False)
        trainer.train()
        actions = [] if callback is None else list(_actions(callback.recorder.log))
        share = None if callback is None else callback.monitor.share
    change = realised(STUDENTS[arm.configuration.student], trainer.model, seed)
    return {**change, "steps": arm.steps, "trace": trace.points, "actions": actions, "monitor_share": share}


def _schedule(arm: Arm, models: Path) -> Schedule:
    """As a recipe has it, with the arm's weight at the beginning."""
    run, first = diagnosed(arm.configuration, models, models.parent)
    success = summarize(run.tables(), run.config).data["student"]["success"]["value"]
    return Schedule(start_success=success, start_gain=first.gain_over_live_null, maximum=arm.weight)


def _actions(log: TrainingLog) -> Iterator[dict[str, Any]]:
    """What the rules did or would have done."""
    for row in log.table("training_actions").to_pylist():
        yield {name: row[name] for name in ("step", "rule", "action", "after")}


@cache
def question_gains(student_name: str, num_questions: int, models: Path) -> dict[str, float]:
    """Screening gain of the strong teacher on each training question of seed 0, by its id."""
    student = STUDENTS[student_name]
    base = diagnosis(student, models)
    config = {
        **base, "teachers": [teacher for teacher in base["teachers"] if teacher["name"] == "strong"], "objectives": ["reverse_kl"],
        "task": {"kind": student.task, "num_questions": num_questions, "seed": FIRST_TRAINING_SEED},
        "rollouts": {"num_rollouts": 8, "num_demonstrations": 0, "max_completion_length": student.max_completion_length},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tables = opdscope.screen(config, run_dir=folder).tables()
    gains = screen_questions(tables)["strong", "reverse_kl"].natural_gain
    return dict(zip(tables["questions"]["question_id"].to_pylist(), np.nan_to_num(gains).tolist(), strict=True))


def ordered_rows(arm: Arm, models: Path) -> Dataset:
    """The training questions of seed 0 in the arm's order; every seed trains on the same ones."""
    student = STUDENTS[arm.configuration.student]
    count = arm.steps * BATCH_SIZE
    rows = training_rows(student.task, 0, count, held_out_questions(student.task, 0, HELD_OUT_QUESTIONS))
    if arm.order == SHUFFLED:
        return rows
    gains = question_gains(student.name, count + 64, models)
    sign = 1.0 if arm.order == LEAST_FIRST else -1.0
    return rows.select(np.argsort([sign * gains[name] for name in rows["question_id"]], kind="stable").tolist())
