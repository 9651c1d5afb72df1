"""A fixed set of questions that the live student is measured on now and then, by the same screening and targeted rollouts as any diagnosis.

A probe is a diagnosis with the student's weights of the moment: questions, seeds and teachers are the same each time, so that probes differ by the
student alone. Each is a run directory of its own, which `opdscope summary` and `opdscope report` read.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import norm

from opdscope.config import Config, load_config
from opdscope.errors import TrainingError
from opdscope.pipeline import diagnose, screen
from opdscope.summary import summarize
from opdscope.training.guard import logger, undisturbed


@dataclass(frozen=True)
class ProbeResult:
    """What one probe says."""

    rows: tuple[dict[str, Any], ...]
    """Of the table `training_probes`, teachers ranked."""
    z: float
    """Half width of an interval in standard errors."""

    def series(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error of the best teacher's numbers, by name."""
        best = self.rows[0]
        names = ("success", "natural_gain", "gain_over_null")
        return {name: (best[name], (best[f"{name}_high"] - best[f"{name}_low"]) / 2 / self.z) for name in names}


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
    targeted: bool = False
    """With targeted rollouts, not only screening."""
    seconds: float = 0.0
    """Spent so far."""
    _longest: float = 0.0
    _due: bool = False
    _started: float | None = field(default=None)

    def check(self, trainer: Any) -> None:
        """Refuse what cannot work, before training.

        Raises:
            TrainingError: If the trainer has no tokenizer, or the settings are out of range.
            OpdscopeError: If the configuration is wrong.
        """
        if self.every < 1 or not 0 < self.budget <= 1:
            raise TrainingError(f"a probe set wants every >= 1 and 0 < budget <= 1, found {self.every} and {self.budget}")
        if getattr(trainer, "processing_class", None) is None:
            raise TrainingError("the trainer has no processing_class, which a probe needs; give it the tokenizer")
        load_config(self.config)

    def maybe(self, trainer: Any, step: int) -> ProbeResult | None:
        """Probe if it is time and the budget allows; the trainer's randomness and training flags stay as they are."""
        now = time.perf_counter()
        self._started = now if self._started is None else self._started
        self._due = self._due or step % self.every == 0
        # the first one is the measure of what the next ones cost
        if not self._due or (self._longest and self.seconds + self._longest > self.budget * (now - self._started + self._longest)):
            return None
        self._due = False
        with undisturbed(trainer.model):
            result = self._run(trainer, step)
        spent = time.perf_counter() - now
        self.seconds, self._longest = self.seconds + spent, max(self._longest, spent)
        logger.info("opdscope: the probe at step %d took %.1f s", step, spent)
        return result

    def _run(self, trainer: Any, step: int) -> ProbeResult:
        started = time.perf_counter()
        target = Path(self.run_dir) / f"step-{step:07d}"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier session that went back to a checkpoint
        with tempfile.TemporaryDirectory(prefix="opdscope-probe-") as folder:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
            config = load_config(self.config, [f"student.model_name_or_path={folder}"])
            run = (diagnose if self.targeted else screen)(config, run_dir=target)
            data = summarize(run.tables(), run.config).data
        seconds = time.perf_counter() - started
        rows = tuple(
            _row(teacher, data["student"]["success"], step, seconds, target) for teacher in data["teachers"] if not teacher["is_null"]
        )
        return ProbeResult(rows, float(norm.ppf(0.5 + run.config.analysis.confidence / 2)))


def _row(teacher: Mapping[str, Any], success: Mapping[str, Any], step: int, seconds: float, run: Path) -> dict[str, Any]:
    targeted = (teacher.get("targeted") or {}).get("all")
    estimates = {"success": success, "natural_gain": teacher["natural_gain"], "gain_over_null": teacher["gain_over_null"]}
    numbers = {f"{name}{suffix}": _number(estimate[key]) for name, estimate in estimates.items() for suffix, key in _COLUMNS}
    alignment = _number(targeted["pooled_alignment"]["value"]) if targeted else float("nan")
    return {"step": step, "teacher": teacher["name"], **numbers, "pooled_alignment": alignment, "seconds": seconds, "run": str(run)}


_COLUMNS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
