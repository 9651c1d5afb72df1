"""What probes take of a real training where they are asked for more often than their budget allows."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collapse import probe_of
from configurations import BATCH_SIZE, HELD_OUT_QUESTIONS, STUDENTS, Configuration
from held_out import held_out_questions
from record_names import BUDGET
from run_records import Records
from short_training import build_trainer, training_rows

from opdscope.training.callback import watch
from opdscope.training.probe import Measure, ProbeSet

_CONFIGURATION = Configuration("chain weak", "strong")
_STEPS, _EVERY, _RATE, _QUESTIONS = 320, 4, 1e-4, 64
_BUDGETS = (0.05, 0.1, 0.2, 0.4)
_MEASURES: tuple[Measure, ...] = ("success", "gains")


def run_probe_budgets(records: Records, models: Path, go_on: Callable[[], bool]) -> None:
    """One training for each budget and depth of a probe that has no record yet."""
    for measure in _MEASURES:
        for budget in _BUDGETS:
            key = f"{BUDGET} | {measure} | {budget}"
            if key in records:
                continue
            if not go_on():
                return
            found = _run(measure, budget, models)
            records.add(BUDGET, key, {"measure": measure, "budget": budget, **found})
            print(f"{key}: {found['probe_share']:.3f}, {found['probes']} probes in {found['seconds']:.0f} s", flush=True)


def _run(measure: Measure, budget: float, models: Path) -> dict[str, Any]:
    student = STUDENTS[_CONFIGURATION.student]
    rows = training_rows(student.task, 0, _STEPS * BATCH_SIZE, held_out_questions(student.task, 0, HELD_OUT_QUESTIONS))
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(_CONFIGURATION, _RATE, 0, models, folder, steps=_STEPS, rows=rows)
        probe = ProbeSet(
            probe_of(_CONFIGURATION, models, _QUESTIONS), Path(folder) / "probes", every=_EVERY, budget=budget, measure=measure
        )
        probe.begin, probe.maybe = _timed(probe.begin, spent), _timed(probe.maybe, spent)
        callback = watch(trainer, Path(folder) / "log", every=_EVERY, probe=probe, keep_best=False)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        probes = len({row["step"] for row in callback.recorder.log.table("training_probes").to_pylist()})
    return {
        "steps": _STEPS, "asked": 1 + _STEPS // _EVERY, "probes": probes, "first_seconds": round(spent[0], 2), "seconds": round(seconds, 1),
        "probe_share": sum(spent) / seconds, "monitor_share": callback.monitor.share,
    }  # fmt: skip


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - started)

    return call
