"""Runs that collapse and runs that do not, watched with a probe set: when would which rules have stopped them, and what is left where they do."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from configurations import HELD_OUT_QUESTIONS, STUDENTS, TEACHERS, UNSOUND_TEACHERS, Configuration
from held_out import held_out_questions, success_of, success_of_files
from record_names import COLLAPSE, HEALTHY, STOPPED
from replay import CAUTIOUS
from run_records import Records
from short_training import build_trainer, realised, success_before, training_rows
from special_teachers import make_collapse_teachers, teacher_folder, tokenizer_of
from transformers import TrainerCallback

from opdscope.store import TrainingLog
from opdscope.training.callback import watch
from opdscope.training.probe import PROBED, ProbeSet

STEPS, BATCH, EVERY, _WARM_UP, _HALF_LIFE = 32, 256, 4, 8, 4.0
"""Optimizer steps, rollouts a step, steps between evaluations and probes, steps of warming up, half-life of the live series."""
_PROBE_QUESTIONS, _PROBE_ROLLOUTS, _PROBE_SEED = 512, 4, 555
_RATE, _SEEDS = 1e-4, (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One run."""

    name: str
    configuration: Configuration
    weight: float = 1.0
    """Factor of the learning rate."""

    def key(self, study: str, seed: int) -> str:
        """Of its record."""
        return f"{study} | {self.configuration.name} | {self.name} | {seed}"


def _arms() -> list[Arm]:
    weak, strong = "chain weak", "chain strong"
    healthy = [(weak, name) for name in ("strong", "peer", "self + solution", "self + answer", "sharpened")]
    healthy += [(strong, name) for name in ("strong", "self + solution")]
    return [
        Arm("weight too high", Configuration(strong, "peer"), 6.0),
        Arm("context that leaks", Configuration(strong, "leaking", "forward_kl"), 0.5),
        Arm("false rule, helps at first", Configuration(weak, "wrong rule"), 1.0),
        Arm("false rule, forward KL", Configuration(strong, "wrong rule", "forward_kl"), 0.2),
        Arm("teacher that flattens", Configuration(strong, "flattened"), 0.3),
        *(Arm(HEALTHY, Configuration(*pair)) for pair in healthy),
    ]


ARMS = _arms()


def run_collapses(records: Records, models: Path, go_on: Callable[[], bool]) -> None:
    """Run what has no record yet: every arm to its end with rules that only report, then those that collapse with rules that act."""
    for student in {arm.configuration.student for arm in ARMS}:
        make_collapse_teachers(models, STUDENTS[student])
    for study, arms in ((COLLAPSE, ARMS), (STOPPED, [arm for arm in ARMS if arm.name != HEALTHY])):
        for seed in _SEEDS:
            for arm in arms:
                if arm.key(study, seed) not in records:
                    if not go_on():
                        return
                    found = _run(arm, seed, models, acts=study == STOPPED)
                    labels = {"arm": arm.name, "configuration": arm.configuration.name, "weight": arm.weight, "seed": seed}
                    records.add(study, arm.key(study, seed), {**labels, **found})
                    print(f"{arm.key(study, seed)}: {found['change']:+.3f} in {found['seconds']:.0f} s", flush=True)


class _Trace(TrainerCallback):
    """Held-out success at every evaluation."""

    def __init__(self, student_name: str, seed: int) -> None:
        self._student, self._seed = STUDENTS[student_name], seed
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY:
            return
        student, half = self._student, HELD_OUT_QUESTIONS // 2
        questions = held_out_questions(student.task, self._seed, HELD_OUT_QUESTIONS)[:half]
        own = success_of(kwargs["model"], tokenizer_of(student.task), questions, student.max_completion_length, self._seed)
        self.points.append((state.global_step, float(np.mean(own - success_before(student, self._seed)[:half]))))


def _run(arm: Arm, seed: int, models: Path, *, acts: bool) -> dict[str, Any]:
    student = STUDENTS[arm.configuration.student]
    rows = training_rows(student.task, seed, STEPS * BATCH, held_out_questions(student.task, seed, HELD_OUT_QUESTIONS))
    settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": _WARM_UP, "per_device_train_batch_size": BATCH}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            arm.configuration, _RATE, seed, models, folder, steps=STEPS, rows=rows, settings=settings, distillation_weight=arm.weight
        )
        trace = _Trace(student.name, seed)
        if not acts and arm.name != HEALTHY:
            trainer.add_callback(trace)
        probe = ProbeSet(
            probe_of(arm.configuration, models, _PROBE_QUESTIONS),
            Path(folder) / "probes",
            every=EVERY,
            budget=1.0,
            measure="success",
            measure_first="targeted",
        )
        callback = watch(
            trainer, Path(folder) / "log", rules={**CAUTIOUS, "dry": not acts}, probe=probe, half_life=_HALF_LIFE, keep_best=acts
        )
        trainer.train()
        seconds = time.perf_counter() - started
        readings = _readings(callback.recorder.log)
        found = {"steps": trainer.state.global_step, "monitor_share": callback.monitor.share, "probe_share": probe.seconds / seconds}
        if acts:
            questions = held_out_questions(student.task, seed, HELD_OUT_QUESTIONS)
            best = success_of_files(str(Path(folder) / "log" / "best"), questions, student.max_completion_length, seed)
            found["best_change"] = float(np.mean(best - success_before(student, seed)))
    change = realised(student, trainer.model, seed)
    return {**change, **found, "seconds": round(seconds, 1), "trace": trace.points, "readings": readings}


def _readings(log: TrainingLog) -> list[dict[str, Any]]:
    """What the rules saw, one row an evaluation: live means with their errors, and the best teacher's of a probe."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in log.table("training_steps").to_pylist():
        live = {name: [row[name], row[f"{name}_error"]] for name in ("success", "natural_gain", "gain_over_null")}
        by_step[row["step"]] = {
            "num_rollouts": row["num_rollouts"],
            **{name: pair for name, pair in live.items() if np.isfinite(pair).all()},
        }
    for row in log.table("training_probes").to_pylist():
        own = {name: [row[name], row[f"{name}_low"], row[f"{name}_high"]] for name in PROBED}
        by_step.setdefault(row["step"], {"num_rollouts": 0})
        by_step[row["step"]] |= {f"probe.{name}": ends for name, ends in own.items() if np.isfinite(ends).all()}
    return [{"step": step, **by_step[step]} for step in sorted(by_step)]


def probe_of(configuration: Configuration, models: Path, questions: int) -> Mapping[str, Any]:
    """The diagnosis of a probe: the teacher that is trained with, as a model of its own, since the live student is no longer what it was."""
    student = STUDENTS[configuration.student]
    teacher = {**TEACHERS, **UNSOUND_TEACHERS}[configuration.teacher]
    paths = {"strong": f"embedded:{student.task}-teacher", "peer": student.peer}
    own = str(teacher_folder(models, student, configuration.teacher))
    path = {"model": paths.get(configuration.teacher, own), "context": student.model}.get(teacher.kind, own)
    context = teacher.value if teacher.kind in ("context", "leaking") else "plain"
    return {
        "student": {"model_name_or_path": student.model},
        "teachers": [{"name": "trained with", "teacher_model_name_or_path": path, "privileged_context": context}],
        "task": {"kind": student.task, "num_questions": questions, "seed": _PROBE_SEED}, "objectives": [configuration.objective],
        "rollouts": {"num_rollouts": _PROBE_ROLLOUTS, "num_demonstrations": 0, "max_completion_length": student.max_completion_length},
        "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3, "continuations_per_node": 12},
        "engine": {"device": "cpu", "verifier_workers": 1}, "analysis": {"num_draws": 100},
    }  # fmt: skip
