"""A fixed set of questions that the live student is measured on now and then, by the same screening and targeted rollouts as any diagnosis.

A probe is a diagnosis with the student's weights of the moment: questions, seeds and teachers are the same each time, so that probes differ by the
student alone, and its change of success since the first probe is a paired difference, which needs far fewer rollouts than two success rates do. Each
is a run directory of its own, which `opdscope summary` and `opdscope report` read.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from opdscope.config import Config, load_config
from opdscope.core.aggregation import Estimate, clustered_mean
from opdscope.errors import TrainingError
from opdscope.pipeline import diagnose, roll_out, screen
from opdscope.store import Run, open_run
from opdscope.summary import summarize
from opdscope.summary.teachers import question_success
from opdscope.training.guard import logger, undisturbed

Measure = Literal["success", "gains", "targeted"]
"""How deep a probe looks: the student's rollouts alone, screening on top, targeted rollouts on top of both. Each costs several times as much."""

_RUN: dict[Measure, Callable[..., Run]] = {"success": roll_out, "gains": screen, "targeted": diagnose}

PROBED = ("success", "success_change", "natural_gain", "gain_over_null", "advantage")
"""What a probe measures with an interval, in the order of the table `training_probes`."""


@dataclass(frozen=True)
class ProbeResult:
    """What one probe says."""

    rows: tuple[dict[str, Any], ...]
    """Of the table `training_probes`, teachers ranked; one without a teacher where only success is measured."""
    z: float
    """Half width of an interval in standard errors."""

    def series(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error of the best teacher's numbers, by name."""
        best = self.rows[0]
        return {name: (best[name], (best[f"{name}_high"] - best[f"{name}_low"]) / 2 / self.z) for name in PROBED}


@dataclass
class ProbeSet:
    """When and what to probe."""

    config: str | Path | Mapping[str, Any] | Config
    """A diagnosis; its `student` is replaced by the live one. Keep it small: a probe is paid for in full each time."""
    run_dir: str | Path
    """Each probe's run goes to `RUN_DIR/step-…`."""
    every: int = 100
    """Optimizer steps between probes, if the budget allows."""
    budget: float = 0.1
    """Most of the whole time that probes may take; a probe that would go beyond it waits."""
    measure: Measure = "gains"
    """Of each probe but the first."""
    measure_first: Measure | None = None
    """Of the probe before training; None: like the others. Targeted rollouts see what a teacher wants and the student hardly ever says."""
    seconds: float = 0.0
    """Spent so far."""
    _cost: dict[Measure, float] = field(default_factory=dict[Measure, float])
    _due: bool = False
    _started: float | None = field(default=None)
    _first: dict[str, float] = field(default_factory=dict[str, float])

    def check(self, trainer: Any) -> None:
        """Refuse what cannot work, before training.

        Raises:
            TrainingError: If the trainer has no tokenizer, or the settings are out of range.
            OpdscopeError: If the configuration is wrong.
        """
        if self.every < 1 or not 0 < self.budget <= 1:
            raise TrainingError(f"a probe set wants every >= 1 and 0 < budget <= 1, found {self.every} and {self.budget}")
        if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
            raise TrainingError(
                "a probe set needs the student's whole weights in one process, and FSDP and DeepSpeed part them; leave it out"
            )
        if getattr(trainer, "processing_class", None) is None:
            raise TrainingError("the trainer has no processing_class, which a probe needs; give it the tokenizer")
        for measure in (self.measure, self.first):
            if measure not in _RUN:
                raise TrainingError(f"a probe set measures {', '.join(_RUN)}, found {measure!r}")
        load_config(self.config)

    @property
    def z(self) -> float:
        """Half width of its intervals in standard errors."""
        return float(norm.ppf(0.5 + load_config(self.config).analysis.confidence / 2))

    @property
    def first(self) -> Measure:
        """Of the probe before training."""
        return self.measure_first or self.measure

    def begin(self, trainer: Any, step: int) -> ProbeResult | None:
        """Measure the student before it is trained: what later probes are held against, and what they may cost. Nothing on a run that goes on."""
        self._started = time.perf_counter()
        before = self._place(0)
        if step > 0 and before.is_dir():
            self._first = question_success(open_run(before).tables())
            return None
        return self._take(trainer, step, self.first)

    def maybe(self, trainer: Any, step: int) -> ProbeResult | None:
        """Probe if it is time and the budget allows; the trainer's randomness and training flags stay as they are."""
        now = time.perf_counter()
        elapsed = 0.0 if self._started is None else now - self._started
        cost = self._cost.get(self.measure, 0.0)  # the first one of its kind is the measure of what the next ones cost
        if not self.is_due(step) or (cost and self.seconds + cost > self.budget * (elapsed + cost)):
            return None
        self.done()
        return self._take(trainer, step, self.measure)

    def is_due(self, step: int) -> bool:
        """Whether it is time for a probe, budget aside; it stays time until one was taken."""
        self._due = self._due or step % self.every == 0
        return self._due

    def done(self) -> None:
        """A probe was taken, here or in another process."""
        self._due = False

    def _take(self, trainer: Any, step: int, measure: Measure) -> ProbeResult:
        now = time.perf_counter()
        with undisturbed(trainer.model):
            result = self._run(trainer, step, measure)
        spent = time.perf_counter() - now
        self.seconds, self._cost[measure] = self.seconds + spent, max(self._cost.get(measure, 0.0), spent)
        logger.info("opdscope: the probe at step %d took %.1f s", step, spent)
        return result

    def _place(self, step: int) -> Path:
        return Path(self.run_dir) / f"step-{step:07d}"

    def _run(self, trainer: Any, step: int, measure: Measure) -> ProbeResult:
        started = time.perf_counter()
        target = self._place(step)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier session that went back to a checkpoint
        with tempfile.TemporaryDirectory(prefix="opdscope-probe-") as folder:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
            config = load_config(self.config, [f"student.model_name_or_path={folder}"])
            run = _RUN[measure](config, run_dir=target)
            tables = run.tables()
        success, level = question_success(tables), run.config.analysis.confidence
        student = {"success": clustered_mean(np.array(list(success.values())), level), "success_change": self._change(success, level)}
        teachers = [_SILENT] if measure == "success" else [t for t in summarize(tables, run.config).data["teachers"] if not t["is_null"]]
        numbers = {name: {key: getattr(estimate, key) for _, key in _COLUMNS} for name, estimate in student.items()}
        stamp = {"step": step, "seconds": time.perf_counter() - started, "run": str(target)}
        return ProbeResult(tuple({**_row(teacher, numbers), **stamp} for teacher in teachers), float(norm.ppf(0.5 + level / 2)))

    def _change(self, success: dict[str, float], level: float) -> Estimate:
        """Against the first probe, by question; exactly zero at the first one."""
        self._first = self._first or success
        return clustered_mean(np.array([success[name] - self._first.get(name, float("nan")) for name in success]), level)


_NOTHING: Mapping[str, float | None] = dict.fromkeys(("value", "low", "high"))
_SILENT: Mapping[str, Any] = {"name": "", "natural_gain": _NOTHING, "gain_over_null": _NOTHING}
"""In the place of a teacher where none was asked."""


def _row(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    targeted = (teacher.get("targeted") or {}).get("all")
    advantage = targeted["advantage"] if targeted else _NOTHING
    estimates = {**student, "natural_gain": teacher["natural_gain"], "gain_over_null": teacher["gain_over_null"], "advantage": advantage}
    numbers = {f"{name}{suffix}": _number(estimates[name][key]) for name in PROBED for suffix, key in _COLUMNS}
    alignment = _number(targeted["pooled_alignment"]["value"]) if targeted else float("nan")
    return {"teacher": teacher["name"], **numbers, "pooled_alignment": alignment}


_COLUMNS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
