"""What of a trainer can be changed mid-run, whatever trainer it is: distillation weight, objective, context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opdscope.errors import TrainingError
from opdscope.training.guard import logger
from opdscope.training.loss import beta_of
from opdscope.training.mixing import LiveMix, ScaledBy
from opdscope.training.rules import LEAST_VERIFIED, Action, LowerWeight, RaiseWeight, Stop, Switch

_BY_LEARNING_RATE = ("DistillationTrainer", "GKDTrainer", "SDFTTrainer")
"""Trainers of a pure distillation loss: their weight is a factor of the learning rate."""
_BY_LOSS = ("SDPOTrainer",)
"""Trainers that mix losses and read `args.distillation_weight` at each step."""
_MIXED = ("MonitoredGRPOTrainer",)
"""Trainers that mix losses by a weight of their own."""
_SCALED_BY: dict[Any, ScaledBy] = {"group": "group", True: "group", "batch": "batch", "none": "none", False: "none"}
"""TRL's names of `scale_rewards`, old and new."""
_INSTEAD = {
    "SDFTTrainer": "call expose_rollouts(trainer) first",
    "SDPOTrainer": "call expose_rollouts(trainer) first",
    "DistillationTrainer": "use MonitoredDistillationTrainer in its place",
    "GKDTrainer": "use MonitoredDistillationTrainer in its place",
    "GRPOTrainer": "use MonitoredGRPOTrainer in its place",
}
"""What shows the rollouts of TRL's own trainers."""


@dataclass
class Steering:
    """The handles of one trainer."""

    trainer: Any
    """A Hugging Face trainer."""
    contexts: tuple[str, ...] = ()
    """Contexts to go to, best first."""
    objectives: tuple[str, ...] = ()
    """Objectives to go to, best first."""
    _factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse alternatives that the trainer does not have."""
        if (self.contexts or self.objectives) and self.handle is None:
            raise TrainingError(
                f"contexts and objectives can be changed in a MonitoredDistillationTrainer or MonitoredGRPOTrainer, or after expose_rollouts, and "
                f"this is a {type(self.trainer).__name__}; leave them out"
            )
        unknown = [name for name in self.contexts if name not in self.handle.contexts]
        if unknown:
            raise TrainingError(f"there is no context {unknown[0]!r}; the trainer has {', '.join(self.handle.contexts)}")
        for name in self.objectives:
            getattr(self.handle, "check_objective", beta_of)(name)

    @property
    def handle(self) -> Any:
        """What shows the rollouts and takes objective and context: the trainer, or what `expose_rollouts` made of it; None if nothing does."""
        return self.trainer if hasattr(self.trainer, "observers") else getattr(self.trainer, "exposed", None)

    @property
    def has_own_weight(self) -> bool:
        """Whether the trainer applies a distillation weight itself."""
        return hasattr(self.trainer, "distillation_weight")

    @property
    def can_weigh(self) -> bool:
        """Whether there is a distillation weight."""
        return self.has_own_weight or _is_any(self.trainer, (*_BY_LEARNING_RATE, *_BY_LOSS))

    @property
    def weight(self) -> float:
        """The distillation weight: of the loss where the trainer mixes losses, else a factor of the learning rate."""
        if self.has_own_weight:
            return self.trainer.distillation_weight
        return float(self.trainer.args.distillation_weight) if _is_any(self.trainer, _BY_LOSS) else self._factor

    @weight.setter
    def weight(self, weight: float) -> None:
        share = min(max(weight, 0.0), 1.0) if _is_any(self.trainer, (*_BY_LOSS, *_MIXED)) else weight
        if self.has_own_weight:
            self.trainer.distillation_weight = share
        elif _is_any(self.trainer, _BY_LOSS):
            self.trainer.args.distillation_weight = share
        else:
            self._factor = weight

    @property
    def distillation_weight(self) -> float:
        """Factor of the learning rate, which `LearningRateFactor` applies; 1 where the weight acts elsewhere."""
        return self._factor

    @property
    def objective(self) -> str:
        """Name of the present objective; empty where it is not known."""
        return "" if self.handle is None else self.handle.objective

    @property
    def context(self) -> str:
        """Name of the present context; empty where it is not known."""
        return "" if self.handle is None else self.handle.context

    def next_of(self, kind: str) -> str | None:
        """The best context or objective that is not the present one and was not left behind; None if there is none."""
        names = self.contexts if kind == "context" else self.objectives
        left = [name for name in names if name != getattr(self, kind)]
        return left[0] if left else None

    def switch(self, kind: str, name: str) -> None:
        """Go to a context or objective; the present one is not gone back to."""
        present = getattr(self, kind)
        setattr(self.handle, kind, name)
        self._drop(kind, (present, name))

    def _drop(self, kind: str, names: Sequence[str]) -> None:
        plural = f"{kind}s"
        setattr(self, plural, tuple(other for other in getattr(self, plural) if other not in names))


@dataclass(frozen=True)
class Change:
    """What an action would change."""

    action: str
    """As the rule names it."""
    before: str
    """The present state."""
    after: str
    """The next one."""

    def __str__(self) -> str:
        """For the log."""
        return f"{self.action} from {self.before} to {self.after}"


def change_of(action: Action, steering: Steering) -> Change | None:
    """What an action would change now; None if nothing."""
    match action:
        case LowerWeight(factor=factor, floor=floor):
            before, after = f"{steering.weight:g}", f"{max(steering.weight * factor, min(floor, steering.weight)):g}"
        case RaiseWeight(factor=factor, ceiling=ceiling):
            before, after = f"{steering.weight:g}", f"{min(steering.weight * factor, max(ceiling, steering.weight)):g}"
        case Stop():
            before, after = "training", "stopped"
        case Switch():
            kind = action.action.removeprefix("switch_")
            before, after = getattr(steering, kind), steering.next_of(kind) or ""
    return Change(action.action, before, after) if after and after != before else None


def apply(change: Change, steering: Steering) -> bool:
    """Make a change of weight, context or objective; True if what is measured is another thing from now on."""
    if change.action.endswith("_weight"):
        steering.weight = float(change.after)
        return False
    steering.switch(change.action.removeprefix("switch_"), change.after)
    return True


def _is_any(trainer: Any, names: Sequence[str]) -> bool:
    return any(base.__name__ in names for base in type(trainer).__mro__)


def mix_of(trainer: Any) -> LiveMix | None:
    """The live mix of a trainer that mixes distillation with a policy loss over groups; None for any other."""
    groups, loss_type = getattr(trainer, "num_generations", 1), getattr(trainer, "loss_type", "")
    if not _is_any(trainer, (*_BY_LOSS, *_MIXED)) or groups < 3:
        return None
    scaled = _SCALED_BY[trainer.scale_rewards]
    by_response = _is_any(trainer, _BY_LOSS)
    length = float(trainer.max_completion_length) if by_response and loss_type == "dr_grpo" else None
    return LiveMix(groups, scaled, by_length=loss_type == "grpo", distils_by_length=by_response, policy_length=length)


def is_repeat(trainer: Any) -> bool:
    """Whether the batch at hand was trained on before: its rollouts, read again, would count twice and are no longer the student's."""
    iterations = getattr(trainer, "num_iterations", 1)
    return iterations > 1 and (trainer._step // trainer.args.steps_per_generation) % iterations != 0


def check_watchable(steering: Steering, has_probe: bool, rollouts_per_step: int) -> None:
    """Refuse a run in which there would be nothing to see, and say so where little will be.

    Args:
        steering: Of the trainer.
        has_probe: Whether there is a probe set.
        rollouts_per_step: Of all processes.

    Raises:
        TrainingError: If the trainer shows no rollouts and there is no probe set.
    """
    trainer, name = steering.trainer, type(steering.trainer).__name__
    if steering.handle is None and not has_probe:
        hint = next(
            (hint for base, hint in _INSTEAD.items() if _is_any(trainer, (base,))), "give it a probe set, which works with any trainer"
        )
        raise TrainingError(
            f"a {name} does not show its rollouts, student and teacher, and there is no probe set, so nothing can be watched; {hint}"
        )
    if steering.handle is not None and rollouts_per_step < LEAST_VERIFIED:
        logger.warning(
            "opdscope: a step has %d rollouts, and success and gains take %d: raise the batch size or gradient_accumulation_steps",
            rollouts_per_step, LEAST_VERIFIED,
        )  # fmt: skip
    if steering.handle is not None and not steering.handle.has_outcomes:
        logger.warning(
            "opdscope: this %s has no reward function: divergence, entropy and length are watched, success and gains are not known", name
        )


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer of which no number would mean what it says.

    Raises:
        TrainingError: With what is wrong and what to do.
    """
    args = getattr(trainer, "args", None)
    if args is None or not hasattr(trainer, "add_callback"):
        raise TrainingError(f"expected a Hugging Face trainer, found a {type(trainer).__name__}")
    if _is_any(trainer, ("GKDTrainer",)) and (trainer.lmbda != 1.0 or trainer.temperature != 1.0):
        raise TrainingError(
            f"GKDTrainer samples {trainer.lmbda:.0%} of its data from the student at temperature {trainer.temperature:g} and takes the loss at "
            "temperature 1; set lmbda=1.0 and temperature=1.0, or use MonitoredDistillationTrainer"
        )
    cut = _truncation(trainer)
    if cut:
        raise TrainingError(
            f"the trainer samples with {', '.join(f'{name}={value}' for name, value in cut.items())}: such rollouts are not the student's own "
            "distribution, and a gain estimated from them is wrong; sample from the full softmax, or watch without outcomes"
        )
    if getattr(trainer, "mask_truncated_completions", False):
        raise TrainingError(
            "mask_truncated_completions takes responses out of the loss by how they ended, and a gain estimated from the rest is wrong; set it to "
            "False, and give truncated responses the weight 0 with outcome_weights"
        )


def _truncation(trainer: Any) -> dict[str, Any]:
    """Settings under which tokens are not drawn from the softmax that the loss is about."""
    neutral = {"top_p": (None, 1.0), "top_k": (None, 0, -1), "min_p": (None, 0.0), "repetition_penalty": (None, 1.0)}
    found = {name: getattr(trainer, name, getattr(trainer.args, name, None)) for name in neutral}
    return {name: value for name, value in found.items() if value not in neutral[name]}
