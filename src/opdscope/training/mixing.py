"""The mix of reinforcement learning and distillation, live: how well either push is aligned with the ideal one, and their best mix."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.mixing import MOMENTS, STANDARD_ERROR_OFFSET, Mix, fisher_moments, group_advantage, mix, rl_signals

ScaledBy = Literal["group", "batch", "none"]

_LEAST_OF_A_QUESTION = 3
_LEAST_STEPS = 4


@dataclass
class LiveMix:
    """Moments of the last steps of a trainer that samples groups of responses and mixes both losses."""

    num_generations: int
    """Responses in a group."""
    scale_rewards: ScaledBy = "group"
    """Whose standard deviation advantages are divided by, as TRL names it."""
    by_length: bool = False
    """Whether the policy loss averages over a response's own tokens."""
    distils_by_length: bool = False
    """Whether the distillation loss does."""
    policy_length: float | None = None
    """What the policy loss divides each response by where the distillation loss divides by its tokens, as in SDPO with `loss_type="dr_grpo"`."""
    window: int = 60
    """Steps that are looked back upon, with equal weight."""
    _moments: deque[np.ndarray] = field(default_factory=deque[np.ndarray])

    def restart(self) -> None:
        """Forget everything."""
        self._moments.clear()

    def take(
        self, outcomes: Float[np.ndarray, "rollout"], questions: Int[np.ndarray, "rollout"], pushes: Float[np.ndarray, "rollout"],
        squares: Float[np.ndarray, "rollout"], lengths: Float[np.ndarray, "rollout"],
    ) -> None:  # fmt: skip
        """One step's rollouts; questions with fewer than three verified ones say nothing and are left out.

        Args:
            outcomes: Rewards, right from 0.5 on; NaN unknown.
            questions: Which question each rollout answers.
            pushes: Sum over positions of the centred signal at the taken token.
            squares: Sum of its squares, whose mean is that of the signal's variance under the student.
            lengths: Tokens.
        """
        mean_length = float(np.mean(lengths))
        outcomes = np.where(np.isnan(outcomes), np.nan, outcomes >= 0.5)
        policy_scale = 1.0 if self.policy_length is None else mean_length / self.policy_length
        if self.scale_rewards == "batch":
            policy_scale /= float(np.nanstd(outcomes, ddof=1)) + STANDARD_ERROR_OFFSET
        if self.distils_by_length:  # in the unit of a loss averaged over tokens, as the policy's signals are
            shares = mean_length / np.maximum(lengths, 1.0)
            pushes, squares = pushes * shares, squares * shares**2
        found: list[np.ndarray] = []
        for question in np.unique(questions):
            own = questions == question
            success = outcomes[own]
            if np.sum(~np.isnan(success)) < _LEAST_OF_A_QUESTION:
                continue
            # the rate of a few rollouts is often 0 or 1, where no group would teach anything; half a success and half a failure are added
            rate = (np.nansum(success) + 0.5) / (np.sum(~np.isnan(success)) + 1.0)
            advantage = group_advantage(np.array(rate), self.num_generations, self.scale_rewards == "group")
            signals = policy_scale * rl_signals(success, lengths[own], advantage, self.by_length, mean_length)
            found.append(fisher_moments(success, signals, pushes[own], squares[own]))
        if found:
            self._moments.append(np.nanmean(np.stack(found), axis=0))
        while len(self._moments) > self.window:
            self._moments.popleft()

    def reading(self, confidence: float) -> Mix | None:
        """Estimates with intervals over steps; None before the fourth step."""
        if len(self._moments) < _LEAST_STEPS:
            return None
        return mix(np.stack(self._moments).reshape(-1, len(MOMENTS)), confidence)
