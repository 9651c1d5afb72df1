"""What a diagnosis is asked for, and so when it may stop."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_KEYS = {
    "each_node": (),
    "rank": ("top", "rounds", "tokens", "seconds"),
    "split": ("width", "rounds", "tokens", "seconds"),
    "tokens": ("tokens", "rounds", "seconds", "expand"),
    "map": ("width", "tokens", "seconds"),
}
"""Settings that each kind of target has."""


class TargetConfig(BaseModel):
    """The target, with its stopping rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["each_node", "rank", "split", "tokens", "map"] = "each_node"
    """each_node: `targeted.continuations_per_node` at every node; it stops when they are drawn.
    rank: ordinary rollouts in rounds, until the order of the `top` teachers is settled or `rollouts.num_rollouts` a question are drawn; no
    targeted rollouts.
    split: continuations in rounds on correct and incorrect paths, until the difference of each teacher's gain between them has an interval no
    wider than `width`, or continuations could hardly narrow it further.
    tokens: every continuation goes where it narrows the teachers' natural gains most per token, until `tokens` or `seconds` are spent.
    map: each node gets what its natural gains are foretold to need for intervals no wider than `width`."""
    top: int = Field(default=2, ge=1)
    """Kind rank: teachers whose order is to be settled: each against all behind it and against its null, at `analysis.confidence` over all
    rounds together. Differences within `analysis.smallest_gain` count as settled ties."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens of continuations (kinds tokens, split and map) or of ordinary rollouts (kind rank). Lengths are foretold, so that a little more may
    be drawn; the pilot or the first look is drawn in any case."""
    seconds: float | None = Field(default=None, gt=0)
    """Most seconds of continuations, or of ordinary rollouts and their scoring (kind rank): a round is no larger than what, at the pace so far, fits
    in what is left of them. Kind tokens must have tokens, seconds or both. Another machine then gives another result."""
    width: float = Field(default=0.2, gt=0)
    """Kind map: widest interval, at `analysis.confidence`, of the natural gain divided by the standard deviation of the teacher's signal, a
    number between -1/2 and 1/2. Kind split: widest interval of the difference in natural gain of a response divided by the root of the
    response's total signal variance."""
    rounds: int = Field(default=4, ge=1, le=100)
    """Kind tokens: parts in which the budget is spent after the pilot. Kind rank: most looks; each doubles the rollouts. Kind split: most rounds
    after the pilot; each doubles what was spent."""

    expand: bool = False
    """Kind tokens: after the pilot, draw further nodes on the paths where they are foretold to narrow the gains more than further continuations
    of the nodes that there are."""

    @model_validator(mode="after")
    def _settings_of_the_kind(self) -> "TargetConfig":
        own = _KEYS[self.kind]
        # by value and not by what was typed: the configuration that a run stores spells every default out
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in own and getattr(self, name) != field.default:
                raise ValueError(f"kind {self.kind!r} has no {name}; remove it (its settings are {', '.join(own) or 'none'})")
        if self.kind == "tokens" and self.tokens is None and self.seconds is None:
            raise ValueError("kind 'tokens' needs tokens, for example tokens: 200000, or seconds")
        return self
