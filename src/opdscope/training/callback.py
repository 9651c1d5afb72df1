"""Watching and steering a run: :func:`watch` attaches the free monitor, the probe set, the rules and the log to a Hugging Face trainer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from opdscope.core.schedule import Schedule, distillation_weight
from opdscope.errors import TrainingError
from opdscope.training.guard import Part, logger
from opdscope.training.learning_rate import LearningRateFactor
from opdscope.training.log import Recorder, log_metrics, probe_metrics, reading_metrics, reading_rows
from opdscope.training.loss import Observer
from opdscope.training.monitor import FreeMonitor, Reading
from opdscope.training.probe import ProbeResult, ProbeSet
from opdscope.training.processes import Processes
from opdscope.training.resuming import best_of, read_resumed
from opdscope.training.rules import (
    SERIES,
    Decision,
    LowerWeight,
    RaiseWeight,
    RuleBook,
    RulesConfig,
    Situation,
    check_rules,
    load_rules,
)
from opdscope.training.steering import Change, Steering, apply, change_of, check_trainer, check_watchable, is_repeat, mix_of

_EVERY = 10
"""Optimizer steps between evaluations without rules."""
_LEAST_ROLLOUTS, _CONFIDENCE = 200, 0.9
"""Of the schedule: from how many rollouts on it is followed, and the level of its intervals."""


def watch(
    trainer: Any,
    log_dir: str | Path,
    *,
    rules: str | Path | RulesConfig | dict[str, Any] | None = None,
    probe: ProbeSet | None = None,
    contexts: Sequence[str] = (),
    objectives: Sequence[str] = (),
    schedule: Schedule | None = None,
    follow_mix: bool = False,
    half_life: float = 20.0,
    budget: float = 0.02,
    every: int | None = None,
    keep_best: bool = True,
) -> "WatchingCallback":
    """Attach everything to a trainer, or refuse with a sentence before training starts.

    Args:
        trainer: A Hugging Face trainer. The free monitor reads a :class:`~opdscope.training.distillation.MonitoredDistillationTrainer`, a
            :class:`~opdscope.training.reinforcement.MonitoredGRPOTrainer`, or a SDFT or SDPO trainer prepared by
            :func:`opdscope.training.self_distillation.expose_rollouts`; others get the probe set and its rules.
        log_dir: Where the records go; `opdscope watch LOG_DIR` shows them.
        rules: YAML file or mapping; see :mod:`opdscope.training.rules`.
        probe: Fixed questions to measure now and then.
        contexts: Contexts that `switch_context` may go to, best first.
        objectives: Objectives that `switch_objective` may go to, best first.
        schedule: Sets the distillation weight at each evaluation, as a factor of the one that the run begins with, from live success and gain over
            null (:mod:`opdscope.core.schedule`); a recipe has one, `recipe.schedule.build()`.
        follow_mix: Set the distillation weight of a trainer that mixes it with a policy loss (GRPO, SDPO) to the best share that the rollouts show.
        half_life: Of the live series, in optimizer steps.
        budget: Most of the training time that the free monitor may take.
        every: Optimizer steps between evaluations; the rules' own setting if there are any, else 10.
        keep_best: Keep the weights of the evaluation with the highest success in `LOG_DIR/best`; with a probe set those of the best probe, which
            may be the weights before training.

    Returns:
        The callback, which is added to the trainer already.

    Raises:
        TrainingError: If the trainer lacks what is asked for, a rule can never fire, or `log_dir` cannot be made.
    """
    check_trainer(trainer)
    try:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the records cannot go to {log_dir}: {error.strerror or error}; choose another log_dir") from error
    book = None if rules is None else RuleBook(load_rules(rules))
    if probe is not None:
        probe.check(trainer)
    steering = Steering(trainer, tuple(contexts), tuple(objectives))
    callback = WatchingCallback(trainer, Recorder(log_dir), book, probe, steering)
    check_watchable(steering, probe is not None, callback.rollouts_per_step)
    callback.monitor = FreeMonitor(half_life=half_life, budget=budget)
    callback.every = every or (_EVERY if book is None else book.config.every)
    callback.best_path = Path(log_dir) / "best" if keep_best else None
    callback.schedule, callback.follow_mix = schedule, follow_mix
    callback.monitor.mix = mix_of(trainer)
    callback.attach()
    return callback


@dataclass
class Orders:
    """What follows from an evaluation: decided by one process, carried out by all."""

    weight: float | None = None
    """The distillation weight that schedule or mix want."""
    change: Change | None = None
    """What a rule changes."""
    is_best: bool = False
    """Whether the weights of now are to be kept."""


class WatchingCallback(TrainerCallback):
    """Made by :func:`watch`. Nothing that happens here is raised into the trainer.

    Where several processes train, each reads its own rollouts; at an evaluation the first one has them all, records, and decides for all.
    """

    def __init__(self, trainer: Any, recorder: Recorder, book: RuleBook | None, probe: ProbeSet | None, steering: Steering) -> None:
        self.trainer, self.recorder, self.book, self.probe, self.steering = trainer, recorder, book, probe, steering
        self.monitor = FreeMonitor()
        """The free monitor."""
        self.schedule: Schedule | None = None
        """Of the distillation weight; None to leave it to the rules."""
        self.follow_mix = False
        """Take the weight from the best mix."""
        self.every = _EVERY
        """Optimizer steps between evaluations."""
        self.best_path: Path | None = None
        """Where the best weights are kept; None not to."""
        self.parts = {name: Part(name) for name in ("monitor", "probe set", "rules", "schedule", "log", "best checkpoint", "resuming")}
        """What is on and what has failed."""
        self.processes = Processes()
        """Those that train."""
        self._probed: ProbeResult | None = None
        self._best = -math.inf
        self._evaluated = -1
        self._first_weight = steering.weight if steering.can_weigh else 1.0

    def attach(self) -> None:
        """Add the callback and its observer to the trainer.

        Raises:
            TrainingError: If a rule can never fire.
        """
        trainer = self.trainer
        if self.book is not None:
            check_rules(self.book.config, self._situation())
        self._check_schedule()
        if self.steering.handle is not None:
            self.steering.handle.observers.append(self._guarded(self.monitor.observe))
        if self.steering.can_weigh and not self.steering.has_own_weight:
            trainer.add_callback(LearningRateFactor(trainer, self.steering))
        trainer.add_callback(self)

    def _check_schedule(self) -> None:
        rules = () if self.book is None else self.book.config.rules
        if self.follow_mix and (self.monitor.mix is None or self.schedule is not None):
            raise TrainingError(
                "follow_mix needs a trainer that mixes distillation with a policy loss over groups of 3 or more, MonitoredGRPOTrainer or SDPO, "
                "and no schedule"
            )
        if self.schedule is None and not self.follow_mix:
            return
        if not self.steering.can_weigh or not getattr(self.steering.handle, "has_outcomes", False):
            raise TrainingError("a schedule needs a trainer with a distillation weight whose responses are verified; leave it out")
        if any(isinstance(rule.then, LowerWeight | RaiseWeight) for rule in rules):
            raise TrainingError("the schedule sets the distillation weight and a rule would too; leave out one of them")

    def _guarded(self, observe: Observer) -> Observer:
        part = self.parts["monitor"]

        def guarded(rows: Any, weights: Any) -> None:
            if part.is_on and not is_repeat(self.trainer):
                with part.trying():
                    observe(rows, weights)

        return guarded

    @property
    def rollouts_per_step(self) -> int:
        """Of all processes."""
        args = self.trainer.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * self.processes.count

    def _situation(self) -> Situation:
        steering = self.steering
        return Situation(
            max_steps=_num_steps(self.trainer),
            rollouts_per_step=self.rollouts_per_step,
            has_monitor=steering.handle is not None,
            has_outcomes=getattr(steering.handle, "has_outcomes", False),
            probe_every=None if self.probe is None else self.probe.every,
            probes=("gains", "gains") if self.probe is None else (self.probe.first, self.probe.measure),
            can_weigh=steering.can_weigh,
            distillation_weight=steering.weight,
            num_contexts=len([name for name in steering.contexts if name != steering.context]),
            num_objectives=len([name for name in steering.objectives if name != steering.objective]),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was written beyond the checkpoint that training goes on from; probe, and look at the rules, before the first step."""
        self.monitor.is_shared = self.processes.count > 1
        self._resume(state.global_step)
        if self.probe is not None:
            self._look(partial(self.probe.begin, self.trainer, state.global_step))
        if self._probed is not None:
            self._evaluate(state.global_step, control)
            if control.should_training_stop and self.steering.can_weigh:
                self.steering.weight = 0.0  # a trainer that is stopped before its first step takes that step still

    def _resume(self, step: int) -> None:
        """Forget what was recorded after this step; if the run goes on, take up weight, context and objective where they were."""
        resumed = None
        if self.processes.is_first:
            with self.parts["log"].trying():
                self.recorder.log.rewind(step)
                resumed = (
                    read_resumed(self.recorder.log, self.probe is not None, 1.0 if self.probe is None else self.probe.z) if step else None
                )
        resumed = self.processes.from_first(resumed)
        if resumed is None:
            return
        with self.parts["resuming"].trying():
            self._best = resumed.best
            if self.book is not None:
                self.book.take_up(resumed.acted)
            for kind in ("context", "objective"):
                name = getattr(resumed, kind)
                if name and name != getattr(self.steering, kind):
                    self.steering.switch(kind, name)
            if resumed.weight is not None and self.steering.can_weigh:
                self.steering.weight = resumed.weight

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate now and then."""
        monitor, step = self.parts["monitor"], state.global_step
        if monitor.is_on:
            with monitor.trying():
                self.monitor.end_step()
                if step >= state.max_steps:
                    self.monitor.flush()
        if self.probe is not None and self.parts["probe set"].is_on and self.probe.is_due(step):
            self._look(partial(self.probe.maybe, self.trainer, step))
        if step % self.every == 0:
            self._evaluate(step, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take what is left, and write everything."""
        if self._evaluated != state.global_step:
            with self.parts["monitor"].trying():
                self.monitor.flush()
            self._record(state.global_step, self._reading())
        if self.processes.is_first:
            with self.parts["log"].trying():
                self.recorder.write(state.global_step, now=True)

    def _look(self, probe: Callable[[], ProbeResult | None]) -> None:
        """Let the first process probe, and tell the others, which wait for it."""
        part, result = self.parts["probe set"], None
        if self.processes.is_first and part.is_on:
            with part.trying():
                result = probe()
        result, part.num_failures = self.processes.from_first((result, part.num_failures))
        if result is None:
            return
        self._probed = result
        if self.probe is not None:
            self.probe.done()
        if self.processes.is_first:
            for row in result.rows:
                self.recorder.add("training_probes", row)
                log_metrics(self.trainer, probe_metrics(row))

    def _reading(self) -> Reading | None:
        """What the rollouts of all processes say; None where the monitor is off."""
        part, held = self.parts["monitor"], {}
        if part.is_on:
            with part.trying():
                held = self.monitor.hand_over()
        together = self.processes.gather(held)
        with part.trying():
            self.monitor.take(together)
            return self.monitor.reading() if part.is_on else None
        return None

    def _evaluate(self, step: int, control: Any) -> None:
        self._evaluated = step
        reading = self._reading()
        orders = self.processes.from_first(self._decide(step, reading) if self.processes.is_first else Orders())
        self._probed = None  # a probe is looked at once, at the evaluation after it
        self._obey(orders, control)
        if self.processes.is_first and self.parts["log"].is_on:
            with self.parts["log"].trying():
                self.recorder.write(step, now=control.should_training_stop)

    def _decide(self, step: int, reading: Reading | None) -> Orders:
        orders, parts = Orders(), self.parts
        self._record(step, reading)
        if self.best_path is not None and parts["best checkpoint"].is_on:
            with parts["best checkpoint"].trying():
                orders.is_best = self._is_best(reading)
        if self.book is not None and parts["rules"].is_on:
            with parts["rules"].trying():
                decision = self.book.decide(self._series(reading))
                if decision is not None:
                    orders.change = self._act(decision, step, dry=self.book.config.dry)
        if reading is not None and parts["schedule"].is_on:
            with parts["schedule"].trying():
                orders.weight = self._wanted_weight(reading)
        return orders

    def _obey(self, orders: Orders, control: Any) -> None:
        if orders.is_best and self.best_path is not None:
            with self.parts["best checkpoint"].trying():
                self.trainer.save_model(str(self.best_path))
        if orders.change is not None:
            with self.parts["rules"].trying():
                if orders.change.action == "stop":
                    control.should_training_stop = True
                elif apply(orders.change, self.steering):
                    self.monitor.restart()
                    if self.book is not None:
                        self.book.forget(("natural_gain", "gain_over_null"))
        if orders.weight is not None:
            with self.parts["schedule"].trying():
                self.steering.weight = orders.weight

    def _wanted_weight(self, reading: Reading) -> float | None:
        """From what the run shows; before there is enough to see, it stays as it is."""
        if reading.num_rollouts < _LEAST_ROLLOUTS:
            return None
        if self.schedule is not None:
            high = reading.interval("gain_over_null", _CONFIDENCE)[1]
            return self._first_weight * distillation_weight(self.schedule, reading.success, reading.gain_over_null, high)
        return reading.best_share if self.follow_mix and math.isfinite(reading.best_share) else None

    def _series(self, reading: Reading | None) -> dict[str, tuple[float, float]]:
        live = {} if reading is None else {name: (getattr(reading, name), getattr(reading, f"{name}_error")) for name in SERIES}
        if reading is not None and self.book is not None and reading.num_rollouts < self.book.config.least_rollouts:
            live = {}
        probed = {} if self._probed is None else self._probed.series()
        return {**live, **{f"probe.{name}": pair for name, pair in probed.items()}}

    def _act(self, decision: Decision, step: int, *, dry: bool) -> Change | None:
        """Record what a rule does; what is to be done, if anything."""
        change = change_of(decision.rule.then, self.steering)
        if change is None:
            return None
        self.recorder.add(
            "training_actions", {"step": step, "rule": decision.rule.name, **vars(change), "reason": decision.reason, "dry": dry}
        )
        logger.warning("opdscope: step %d: rule %r%s %s: %s", step, decision.rule.name, ", dry:" if dry else ":", change, decision.reason)
        return None if dry else change

    def _is_best(self, reading: Reading | None) -> bool:
        """Whether success is higher than at the last saved weights, by more than its own error: the probe set's if there is one."""
        if self.probe is not None:
            success, error = (math.nan, math.nan) if self._probed is None else self._probed.series()["success_change"]
        else:
            success, error = (math.nan, math.nan) if reading is None else (reading.success, reading.success_error)
        before, self._best = self._best, best_of([(success, error)], self._best)
        return self._best > before

    def _record(self, step: int, reading: Reading | None) -> None:
        """Store a reading and hand it to the trainer's log, in the first process."""
        if reading is None or reading.num_rollouts == 0 or not self.processes.is_first or not self.parts["log"].is_on:
            return
        state = {
            "objective": self.steering.objective, "context": self.steering.context, "distillation_weight": self.steering.weight,
            "monitor_share": self.monitor.share,
        }  # fmt: skip
        with self.parts["log"].trying():
            for name, row in reading_rows(step, reading, state):
                self.recorder.add(name, row)
            log_metrics(self.trainer, reading_metrics(reading, state))


def _num_steps(trainer: Any) -> int:
    """Optimizer steps of the run, as far as they are known before it starts."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    try:
        rows = len(trainer.train_dataset)
    except TypeError as error:
        raise TrainingError("the data set has no length and max_steps is not set, so rules cannot be checked; set max_steps") from error
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * max(getattr(args, "world_size", 1), 1)
    return math.ceil(args.num_train_epochs * max(rows // per_step, 1))
