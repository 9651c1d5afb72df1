"""What a diagnosis is asked for, and so when it may stop."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_KEYS = {"each_node": (), "tokens": ("tokens", "rounds", "seconds"), "map": ("width", "tokens", "seconds")}
"""Settings that each kind of target has."""


class TargetConfig(BaseModel):
    """The target, with its stopping rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["each_node", "tokens", "map"] = "each_node"
    """each_node: `targeted.continuations_per_node` at every node; it stops when they are drawn.
    tokens: every continuation goes where it narrows the teachers' natural gains most per token, until `tokens` are spent.
    map: each node gets what its natural gains are foretold to need for intervals no wider than `width`."""
    tokens: int | None = Field(default=None, ge=1)
    """Kinds tokens (must be given) and map: most tokens of continuations."""
    seconds: float | None = Field(default=None, gt=0)
    """Kinds tokens and map: no further round begins once continuations took so long. Another machine then gives another result."""
    width: float = Field(default=0.2, gt=0)
    """Kind map: widest interval, at `analysis.confidence`, of the natural gain divided by the standard deviation of the teacher's signal, a
    number between -1/2 and 1/2."""
    rounds: int = Field(default=4, ge=1, le=100)
    """Kind tokens: parts in which the budget is spent after the pilot."""

    @model_validator(mode="after")
    def _settings_of_the_kind(self) -> "TargetConfig":
        own = _KEYS[self.kind]
        # by value and not by what was typed: the configuration that a run stores spells every default out
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in own and getattr(self, name) != field.default:
                raise ValueError(f"kind {self.kind!r} has no {name}; remove it (its settings are {', '.join(own) or 'none'})")
        if self.kind == "tokens" and self.tokens is None:
            raise ValueError("kind 'tokens' needs tokens, for example tokens: 200000")
        return self
