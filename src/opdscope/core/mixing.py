r"""Reinforcement learning and distillation in one loss: how well each push, and any mix of both, is aligned with the ideal one.

In the Fisher metric everything follows from ordinary rollouts. Summed over the nodes of a response, the inner product of two signals is the
covariance, over responses to a question, of what each sums up to along the response: outcome R for the ideal gradient, advantage X (over the length
where the trainer divides by it) for GRPO, centred signal F for a teacher. For R and X this is exact, since the expectations of R, token after token,
are a martingale whose increments add up to R in variance: :math:`\sum_t E \operatorname{Var}_p(S) = \operatorname{Var}(R)`.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import binom

from opdscope.core.aggregation import Estimate, clustered_statistic
from opdscope.errors import ShapeError

STANDARD_ERROR_OFFSET = 1e-4
"""What TRL adds to a group's standard deviation before it divides by it."""


@dataclass(frozen=True)
class GroupAdvantage:
    """Mean advantage of a response in a group of answers to one question, given its own outcome."""

    correct: Float[np.ndarray, "*question"]
    """If it is correct; not negative."""
    incorrect: Float[np.ndarray, "*question"]
    """If it is not; not positive."""


def group_advantage(success: Float[np.ndarray, "*question"], num_generations: int, scale_rewards: bool = True) -> GroupAdvantage:
    r"""Advantage that GRPO gives on average to a correct and to an incorrect response, over what the others of its group turn out to be.

    Args:
        success: Success rate of the question, in [0, 1].
        num_generations: Responses in a group, at least two.
        scale_rewards: True divides by the group's standard deviation (TRL's `scale_rewards="group"`), False does not (`"none"`, Dr. GRPO).

    Notes:
        :math:`E[(R_i - \bar R) / (s + 10^{-4}) \mid R_i]` with the other outcomes binomial and s the standard deviation with divisor n - 1, as TRL
        computes it. The expected gradient is the ideal one times `correct - incorrect`: without scaling 1 - 1/n on every question, with scaling about
        :math:`1 / \sqrt{\rho (1 - \rho)}`, which weighs hard and easy questions up.

    References:
        Shao et al. (2024), GRPO; Liu et al. (2025), Dr. GRPO.

    Example:
        >>> group_advantage(np.array(0.5), 4, scale_rewards=False).correct.round(4).item()
        0.375
    """
    if num_generations < 2:
        raise ValueError(f"num_generations: a group has at least 2 responses, found {num_generations}")
    rate = np.asarray(success, dtype=np.float64)[..., None]
    others = np.arange(num_generations)
    chance = binom.pmf(others, num_generations - 1, rate)

    def mean(own: int) -> Float[np.ndarray, "*question"]:
        share = (others + own) / num_generations
        spread = np.sqrt(share * (1.0 - share) * num_generations / (num_generations - 1)) + STANDARD_ERROR_OFFSET
        return np.sum(chance * (own - share) / (spread if scale_rewards else 1.0), axis=-1)

    return GroupAdvantage(mean(1), mean(0))


def rl_signals(
    outcomes: Float[np.ndarray, "rollout"],
    lengths: Float[np.ndarray, "rollout"],
    advantage: GroupAdvantage,
    by_length: bool,
    mean_length: float,
) -> Float[np.ndarray, "rollout"]:
    """What GRPO's expected gradient sums up to along each response.

    Args:
        outcomes: 1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE.
        lengths: Tokens of each response.
        advantage: Of this question.
        by_length: True where the trainer averages over a response's own tokens (TRL's `loss_type="grpo"`); False where it divides by a number that
            is the same for all (`"dapo"`, `"bnpo"`, `"dr_grpo"`).
        mean_length: Of all responses; keeps both kinds in one unit, that of a loss averaged over tokens.
    """
    own = np.where(outcomes > 0.5, advantage.correct, advantage.incorrect)
    return np.where(np.isnan(outcomes), np.nan, own * (mean_length / np.maximum(lengths, 1.0) if by_length else 1.0))


MOMENTS = ("ideal", "rl_gain", "distillation_gain", "rl_square", "product", "distillation_square")
"""Columns of moments: ‖g*‖², ⟨g*, r⟩, ⟨g*, d⟩, ‖r‖², ⟨r, d⟩ and ‖d‖² with r for reinforcement learning and d for distillation."""


def fisher_moments(
    outcomes: Float[np.ndarray, "rollout"],
    signals: Float[np.ndarray, "rollout"],
    pushes: Float[np.ndarray, "rollout"],
    push_variances: Float[np.ndarray, "rollout"],
) -> Float[np.ndarray, "6"]:
    r"""Inner products in the Fisher metric of ideal, reinforcement-learning and distillation push, from one question's ordinary rollouts.

    Args:
        outcomes: 1, 0, or NaN for UNVERIFIABLE (left out).
        signals: From :func:`rl_signals`.
        pushes: Sum over positions of the centred signal at the taken token.
        push_variances: Sum over positions of the signal's variance under the student.

    Returns:
        :data:`MOMENTS`, unbiased given the signals. NaN with fewer than two verified rollouts.

    Raises:
        ShapeError: If the arrays differ in length.

    Example:
        >>> fisher_moments(np.array([1.0, 0.0]), np.array([0.5, -0.5]), np.array([0.2, -0.2]), np.array([0.1, 0.1])).round(3).tolist()
        [0.5, 0.5, 0.2, 0.5, 0.2, 0.1]
    """
    if not outcomes.shape == signals.shape == pushes.shape == push_variances.shape:
        raise ShapeError(
            f"expected arrays of one length, found {outcomes.shape}, {signals.shape}, {pushes.shape} and {push_variances.shape}"
        )
    known = ~np.isnan(outcomes)
    if known.sum() < 2:
        return np.full(len(MOMENTS), np.nan)
    covariance = np.cov(np.stack([outcomes[known], signals[known], pushes[known]]))
    return np.array([*covariance[0], covariance[1, 1], covariance[1, 2], np.mean(push_variances[known])])


def mix_alignment(moments: Float[np.ndarray, "*batch 6"], share: Float[np.ndarray, "*batch"] | float) -> Float[np.ndarray, "*batch"]:
    r"""Cosine of the ideal gradient and the mix :math:`(1 - w) r + w d`; what is gained per size of the push, relative to the ideal.

    Args:
        moments: Totals of :data:`MOMENTS`.
        share: Weight w of distillation, in [0, 1].

    Returns:
        A number in [-1, 1] where the moments are exact; NaN where one of the lengths is not positive.
    """
    ideal, rl, distillation, rl_square, product, square = np.moveaxis(np.asarray(moments, dtype=np.float64), -1, 0)
    gain = (1.0 - share) * rl + share * distillation
    size = ideal * ((1.0 - share) ** 2 * rl_square + 2.0 * share * (1.0 - share) * product + share**2 * square)
    return np.where(size > 0, gain / np.sqrt(np.where(size > 0, size, 1.0)), np.nan)


def best_share(moments: Float[np.ndarray, "6"]) -> float:
    r"""The weight w of distillation in :math:`(1 - w) r + w d` with the largest predicted gain per size of the push.

    Args:
        moments: Totals of :data:`MOMENTS`.

    Returns:
        A share in [0, 1]; 0 is reinforcement learning alone, 1 distillation alone. NaN where a length is not positive, or where no mix has a gain.

    Notes:
        With :math:`a = \langle g^*, r \rangle, b = \langle g^*, d \rangle` the derivative of the cosine vanishes at
        :math:`w \propto b \|r\|^2 - a \langle r, d \rangle` against :math:`1 - w \propto a \|d\|^2 - b \langle r, d \rangle`. Where one of the two is
        negative the maximum lies at an end.

    Example:
        >>> best_share(np.array([1.0, 0.5, 0.5, 1.0, 0.0, 1.0]))  # equally useful and at right angles
        0.5
        >>> best_share(np.array([1.0, 1.0, 0.2, 1.0, 0.2, 1.0]))  # reinforcement learning is the ideal direction
        0.0
    """
    _, rl, distillation, rl_square, product, square = (float(value) for value in moments)
    if not (rl_square > 0 and square > 0):
        return float("nan")
    shares = [0.0, 1.0]
    of_distillation, of_rl = distillation * rl_square - rl * product, rl * square - distillation * product
    if of_distillation > 0 and of_rl > 0:
        shares.append(of_distillation / (of_distillation + of_rl))
    gains = [float(mix_alignment(np.array([1.0, *moments[1:]]), share)) for share in shares]
    best = int(np.argmax(np.nan_to_num(gains, nan=-np.inf)))
    return shares[best] if gains[best] > 0 else float("nan")


@dataclass(frozen=True)
class Mix:
    """A mix of reinforcement learning and distillation, with intervals clustered by question."""

    share: Estimate
    """Weight of distillation with the largest predicted gain per size of the push; the interval is cut to [0, 1]."""
    rl: Estimate
    """Alignment of reinforcement learning alone."""
    distillation: Estimate
    """Of distillation alone."""
    mixed: Estimate
    """Of the best mix; chosen on the same data, and so a little too high."""


def mix(moments: Float[np.ndarray, "question 6"], confidence: float) -> Mix:
    """Alignment of both pushes and of their best mix.

    Args:
        moments: Of each question; NaN rows are left out.
        confidence: Level of the intervals.

    Returns:
        Estimates at the totals over questions, each with a jackknife interval.
    """

    def alignment_at(share: float) -> Estimate:
        return clustered_statistic(moments, lambda sums: float(mix_alignment(sums, share)), confidence)

    share = clustered_statistic(moments, best_share, confidence)
    mixed = clustered_statistic(moments, lambda sums: float(mix_alignment(sums, best_share(sums))), confidence)
    cut = Estimate(
        share.value, float(np.clip(share.low, 0, 1)), float(np.clip(share.high, 0, 1)), share.standard_error, share.num_clusters, confidence
    )
    return Mix(cut, alignment_at(0.0), alignment_at(1.0), mixed)
