"""What of a trainer can be changed mid-run, whatever trainer it is: distillation weight, objective, context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opdscope.errors import TrainingError
from opdscope.training.distillation import MonitoredDistillationTrainer
from opdscope.training.mixing import LiveMix
from opdscope.training.rules import Action, LowerWeight, RaiseWeight, Stop, Switch

_BY_LEARNING_RATE = ("DistillationTrainer", "GKDTrainer", "SDFTTrainer")
"""Trainers of a pure distillation loss: their weight is a factor of the learning rate."""
_BY_LOSS = ("SDPOTrainer",)
"""Trainers that mix losses and read `args.distillation_weight` at each step."""


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
        if (self.contexts or self.objectives) and not self._is_monitored:
            raise TrainingError(
                f"contexts and objectives can be changed in a MonitoredDistillationTrainer, and this is a {type(self.trainer).__name__}; "
                "leave them out"
            )
        unknown = [name for name in self.contexts if name not in self.trainer.contexts]
        if unknown:
            raise TrainingError(f"there is no context {unknown[0]!r}; the trainer has {', '.join(self.trainer.contexts)}")

    @property
    def _is_monitored(self) -> bool:
        return isinstance(self.trainer, MonitoredDistillationTrainer)

    @property
    def can_weigh(self) -> bool:
        """Whether there is a distillation weight."""
        return self._is_monitored or _is_any(self.trainer, (*_BY_LEARNING_RATE, *_BY_LOSS))

    @property
    def weight(self) -> float:
        """The distillation weight: of the loss where the trainer mixes losses, else a factor of the learning rate."""
        if self._is_monitored:
            return self.trainer.distillation_weight
        return float(self.trainer.args.distillation_weight) if _is_any(self.trainer, _BY_LOSS) else self._factor

    @weight.setter
    def weight(self, weight: float) -> None:
        if self._is_monitored:
            self.trainer.distillation_weight = weight
        elif _is_any(self.trainer, _BY_LOSS):
            self.trainer.args.distillation_weight = min(max(weight, 0.0), 1.0)
        else:
            self._factor = weight

    @property
    def distillation_weight(self) -> float:
        """Factor of the learning rate, which `LearningRateFactor` applies; 1 where the weight acts elsewhere."""
        return self._factor

    @property
    def objective(self) -> str:
        """Name of the present objective; empty where it is not known."""
        return self.trainer.objective if self._is_monitored else ""

    @property
    def context(self) -> str:
        """Name of the present context; empty where it is not known."""
        return self.trainer.context if self._is_monitored else ""

    def next_of(self, kind: str) -> str | None:
        """The best context or objective that is not the present one and was not left behind; None if there is none."""
        names = self.contexts if kind == "context" else self.objectives
        left = [name for name in names if name != getattr(self, kind)]
        return left[0] if left else None

    def switch(self, kind: str, name: str) -> None:
        """Go to a context or objective; the present one is not gone back to."""
        present = getattr(self, kind)
        setattr(self.trainer, kind, name)
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
    groups = getattr(trainer, "num_generations", 1)
    if not _is_any(trainer, _BY_LOSS) or groups < 3:
        return None
    scaled = getattr(trainer, "scale_rewards", "group") not in ("none", False)
    return LiveMix(groups, scaled, by_length=getattr(trainer.args, "loss_type", "") == "grpo")


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
    cut = {name: value for name, value in _truncation(trainer).items() if value}
    if cut:
        raise TrainingError(
            f"the trainer samples with {', '.join(f'{name}={value}' for name, value in cut.items())}: such rollouts are not the student's own "
            "distribution, and a gain estimated from them is wrong; sample from the full softmax, or watch without outcomes"
        )


def _truncation(trainer: Any) -> dict[str, Any]:
    """Settings under which tokens are not drawn from the softmax that the loss is about."""
    own = {name: getattr(trainer, name, None) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    neutral = {"top_p": (None, 1.0), "top_k": (None, 0, -1), "min_p": (None, 0.0), "repetition_penalty": (None, 1.0)}
    return {name: value for name, value in own.items() if value not in neutral[name]}
