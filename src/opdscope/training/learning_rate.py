"""A distillation weight that acts on the learning rate, because Adam divides the scale of a loss away."""

from typing import Any

from transformers import TrainerCallback


class LearningRateFactor(TrainerCallback):
    """Multiplies the learning rate by a distillation weight for the time of each optimizer step, whatever the scheduler."""

    def __init__(self, trainer: Any, source: Any) -> None:
        """Apply `source.distillation_weight`.

        Args:
            trainer: Whose optimizer.
            source: Object with the attribute; read at each step.
        """
        self._trainer, self._source = trainer, source
        self._rates: list[Any] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale."""
        groups = self._trainer.optimizer.param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self._source.distillation_weight

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale back."""
        for group, rate in zip(self._trainer.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
