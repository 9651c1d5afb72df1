"""Distillation beside reinforcement learning: how well each is aligned, and the mix with the largest predicted gain per size of the push."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.advice.tokens import NodeGains, Tokens, per_question
from opdscope.config import Config
from opdscope.core.mixing import MOMENTS, Mix, fisher_moments, group_advantage, mix, rl_signals, sampled_moments
from opdscope.core.screening import screening_gain

NUM_GENERATIONS = 8
"""Responses in a group, TRL's default."""

LossType = Literal["dapo", "grpo", "dr_grpo"]

_VARIANTS: tuple[tuple[LossType, bool], ...] = (("dapo", True), ("grpo", True), ("dr_grpo", False))
"""TRL's `loss_type`, and whether rewards are divided by the group's standard deviation."""


@dataclass(frozen=True)
class Reinforcement:
    """One way in which a trainer turns outcomes into updates, beside the chosen distillation."""

    loss_type: LossType
    """TRL's name: dapo and dr_grpo divide by a length common to all, grpo by each response's own."""
    scale_rewards: bool
    """True where advantages are divided by the group's standard deviation."""
    expected: Mix
    """In the Fisher metric, of the expected update: very many rollouts a step."""
    single: Mix | None
    """On the logits, of the update from single rollouts; None without targeted rollouts, or with division by a response's own length."""


def mix_with_reinforcement(tables: Mapping[str, pa.Table], tokens: Tokens, nodes: NodeGains | None, config: Config) -> list[Reinforcement]:
    """Each variant of GRPO beside the teacher and objective of `tokens`.

    Args:
        tables: Every table of the run.
        tokens: All tokens under the teacher and objective.
        nodes: What targeted rollouts measured; None if there are none.
        config: Confidence.
    """
    ideal = (
        None if nodes is None else per_question(tables, nodes, nodes.ideal_squared_norm, np.zeros(len(nodes.rows), dtype=np.int64), 1)[:, 0]
    )
    found: list[Reinforcement] = []
    for loss_type, scaled in _VARIANTS:
        by_length = loss_type == "grpo"
        expected, single = _moments(tokens, ideal, by_length, scaled)
        level = config.analysis.confidence
        found.append(Reinforcement(loss_type, scaled, mix(expected, level), None if ideal is None or by_length else mix(single, level)))
    return found


def _moments(
    tokens: Tokens, ideal: Float[np.ndarray, "question"] | None, by_length: bool, scaled: bool
) -> tuple[Float[np.ndarray, "question 6"], Float[np.ndarray, "question 6"]]:
    sums = [
        tokens.per_rollout(v) for v in (tokens.signal, tokens.signal_variance, tokens.gradient, tokens.score_square, tokens.gradient_square)
    ]
    push, variance, gradient, score, square = sums
    known = tokens.rollouts
    mean_length = float(np.mean(known.length))
    expected, single = np.full((2, tokens.num_questions, len(MOMENTS)), np.nan)
    for question in np.unique(known.question):
        own = np.flatnonzero(known.question == question)
        outcomes = known.outcome[own]
        if np.isnan(outcomes).all():
            continue
        advantage = group_advantage(np.array(np.nanmean(outcomes)), NUM_GENERATIONS, scaled)
        signals = rl_signals(outcomes, known.length[own].astype(np.float64), advantage, by_length, mean_length)
        expected[question] = fisher_moments(outcomes, signals, push[own], variance[own])
        if ideal is not None:
            gain = float(screening_gain(outcomes, gradient[own]))
            single[question] = sampled_moments(
                expected[question], signals, gradient[own], score[own], square[own], float(ideal[question]), gain
            )
    return expected, single
