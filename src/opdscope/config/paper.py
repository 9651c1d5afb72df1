"""The source paper's protocol as a preset: its numbers, and what it changes elsewhere in the configuration."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_NUM_ROLLOUTS = 200
"""The paper's ordinary rollouts a question."""


class PaperConfig(BaseModel):
    """Numbers of the protocol of arXiv 2605.10889.

    Every default is the paper's, except for two that it does not give: `top_gradient` and `top_difference`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths_per_outcome: int = Field(default=2, ge=1)
    """Paths a question from its correct rollouts, and as many from its incorrect ones, as far as there are any."""
    candidate_threshold: float = Field(default=0.02, gt=0, lt=1)
    """A token can be chosen for a teacher if the student or this teacher gives it more than this probability."""
    first_window: int = Field(default=50, ge=1)
    """Width of the first depth window; each further one is twice as wide: 1–50, 51–150, 151–350, …"""
    top_gradient: int = Field(default=5, ge=0)
    """Tokens chosen per window, path and teacher by the size of their reverse-KL gradient. Not published; with 5 and 5, four paths and eight
    teachers a question costs about what the paper says it spent."""
    top_difference: int = Field(default=5, ge=0)
    """Tokens chosen likewise by |q − p|. Not published."""
    visits: int = Field(default=100, ge=2)
    """Visits that a chosen token is brought to, those of ordinary rollouts included."""
    min_visits: int = Field(default=20, ge=1)
    """A child with fewer visits is not kept. The paper takes 40 on long chains. May be changed without sampling again."""
    min_children: int = Field(default=2, ge=2)
    """A node with fewer kept children is not scored. May be changed without sampling again."""

    @model_validator(mode="after")
    def _measurable(self) -> "PaperConfig":
        if self.visits < self.min_visits:
            raise ValueError(f"visits ({self.visits}) must not be below min_visits ({self.min_visits}): no chosen token would be kept")
        if self.top_gradient + self.top_difference == 0:
            raise ValueError("top_gradient and top_difference are both 0: no token would be chosen")
        return self


def fill_preset(data: Any) -> Any:
    """A raw configuration with the preset's own defaults where it asks for the preset and the user set nothing."""
    if not isinstance(data, Mapping) or data.get("protocol") != "paper":
        return data
    filled = {**data, "paper": {} if data.get("paper") is None else data["paper"]}
    rollouts = filled.get("rollouts", {})
    if isinstance(rollouts, BaseModel):
        rollouts = rollouts.model_dump(exclude_unset=True)
    # anything else is left for the check of the section itself to refuse
    return {**filled, "rollouts": {"num_rollouts": _NUM_ROLLOUTS, **rollouts} if isinstance(rollouts, Mapping) else rollouts}
