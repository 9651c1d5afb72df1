r"""Gains from ordinary rollouts: one teacher-forced pass per teacher, and no targeted rollout.

For a response y with outcome R, the sum over its positions of the centred signal, :math:`F = \sum_t (f_{y_t} - \bar f_t)`, is the score
function of moving the student along the objective. Its covariance with R is therefore the derivative of the success rate, summed over all
nodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int

from opdscope.core.divergences import forward_kl_signal, signal_of
from opdscope.core.overlap import overlap, top_tokens
from opdscope.errors import ShapeError

Array = Any

RARE_PROB = 1e-4
"""Tokens that the student takes less often than this are called rare: ordinary rollouts hardly ever meet them."""


@dataclass(frozen=True)
class StudentRows:
    """The student's distribution at a chunk of positions, with what every teacher's comparison needs of it."""

    logprobs: Float[Array, "row vocab"]
    """Natural-log probabilities."""
    probs: Float[Array, "row vocab"]
    """Probabilities."""
    entropy: Float[Array, "row"]
    """Entropy in nats."""
    collision: Float[Array, "row"]
    """Chance that two draws agree, the sum of squared probabilities."""
    top: Int[Array, "row top"]
    """The likeliest tokens."""

    @classmethod
    def of(cls, logprobs: Float[Array, "row vocab"]) -> "StudentRows":
        """Everything from the log-probabilities."""
        xp = array_namespace(logprobs)
        probs = xp.exp(logprobs)
        with np.errstate(invalid="ignore"):
            return cls(logprobs, probs, -_mean(probs, logprobs), xp.sum(probs * probs, axis=-1), top_tokens(logprobs))


def of_tokens(logprobs: Float[Array, "row vocab"], taken: Int[Array, "row"]) -> Float[Array, "row"]:
    """Natural-log probability of one token at each position."""
    return array_namespace(taken).take_along_axis(logprobs, taken[:, None], axis=-1)[:, 0]


@dataclass(frozen=True)
class TeacherRows:
    """One teacher beside the student at a chunk of positions: divergences, no objective yet."""

    reverse_kl: Float[Array, "row"]
    """KL(student ‖ teacher) in nats."""
    forward_kl: Float[Array, "row"]
    """KL(teacher ‖ student) in nats."""
    jensen_shannon: Float[Array, "row"]
    """Jensen–Shannon divergence in nats, in [0, log 2]."""
    entropy: Float[Array, "row"]
    """The teacher's entropy in nats."""
    rare_mass: Float[Array, "row"]
    """The teacher's probability on tokens that the student takes less often than :data:`RARE_PROB`."""
    overlap: Float[Array, "row"]
    """Share of the student's likeliest tokens that are among the teacher's, in [0, 1]."""
    overlap_advantage: Float[Array, "row"]
    """Mean over the shared ones of the renormalised student's probability times its log-ratio to the renormalised teacher's, in nats, ≤ 0."""


@dataclass(frozen=True)
class ObjectiveRows:
    """One objective of one teacher at a chunk of positions, reduced over the vocabulary."""

    taken_signal: Float[Array, "row"]
    """Signal of the token that the student took, minus the signal's mean under the student."""
    taken_gradient: Float[Array, "row"]
    """Distillation gradient at the taken token, minus its mean under the student."""
    signal_variance: Float[Array, "row"]
    """Variance of the signal under the student: squared length of the push in the Fisher metric."""
    gradient_squared_norm: Float[Array, "row"]
    """Squared Euclidean length of the push on the logits."""


def compare_rows(student: StudentRows, teacher_logprobs: Float[Array, "row vocab"]) -> TeacherRows:
    """Divergences between student and teacher at each position, over the full vocabulary."""
    xp = array_namespace(teacher_logprobs)
    teacher_probs = xp.exp(teacher_logprobs)
    shared, shared_advantage = overlap(student.logprobs, student.top, teacher_logprobs)
    # -inf - (-inf) and 0 · inf arise at tokens that are masked right after; numpy would warn, torch does not
    with np.errstate(invalid="ignore"):
        log_ratio = teacher_logprobs - student.logprobs
        teacher_entropy = -_mean(teacher_probs, teacher_logprobs)
        # JS = H(m) - (H(p) + H(q)) / 2 with m = (p + q) / 2
        summed_logs = _mean(student.probs + teacher_probs, xp.logaddexp(student.logprobs, teacher_logprobs))
        return TeacherRows(
            reverse_kl=-_mean(student.probs, log_ratio),
            forward_kl=_mean(teacher_probs, log_ratio),
            jensen_shannon=float(np.log(2.0)) - 0.5 * (summed_logs + student.entropy + teacher_entropy),
            entropy=teacher_entropy,
            rare_mass=xp.sum(teacher_probs * xp.astype(student.probs < RARE_PROB, teacher_probs.dtype), axis=-1),
            overlap=shared,
            overlap_advantage=shared_advantage,
        )


def _mean(probs: Float[Array, "row vocab"], values: Float[Array, "row vocab"]) -> Float[Array, "row"]:
    return array_namespace(probs).sum(_drawable(probs, probs * values), axis=-1)


def _drawable(probs: Float[Array, "row vocab"], values: Float[Array, "row vocab"]) -> Float[Array, "row vocab"]:
    """The values, zero at tokens below the smallest normal number. Few rows have any, and looking costs a tenth of masking."""
    xp = array_namespace(probs)
    least = float(xp.finfo(probs.dtype).smallest_normal)
    return values if bool(xp.min(probs) >= least) else xp.where(probs >= least, values, xp.zeros_like(values))


def reduce_rows(
    student: StudentRows, teacher_logprobs: Float[Array, "row vocab"], taken: Int[Array, "row"], objective: str
) -> ObjectiveRows:
    r"""What screening keeps of an objective at each position, so that full-vocabulary rows never have to be kept.

    Args:
        student: The student at these positions.
        teacher_logprobs: The teacher at the same positions.
        taken: The token that the response took at each position.
        objective: As the config names it.

    Returns:
        :math:`f_y - \bar f`, :math:`d_y - \bar d`, :math:`\operatorname{Var}_p(f)` and :math:`\|d\|^2`, with means under the student over
        the full vocabulary. In the first three, tokens below the smallest normal number (1e-38 in float32) count zero: they are never
        drawn. A huge variance says that the teacher wants tokens that the student practically never takes.
    """
    xp = array_namespace(teacher_logprobs)
    signal = signal_of(objective)
    index = taken[:, None]
    # below the smallest normal number q/p can overflow, and one such token would make the mean infinite; it is never drawn either
    with np.errstate(invalid="ignore"):
        values = _drawable(student.probs, signal(student.logprobs, teacher_logprobs))
    deviation = _drawable(student.probs, values - xp.sum(student.probs * values, axis=-1, keepdims=True))
    pushed = student.probs * deviation
    # the pullback of the signal, except that q - p still counts the tokens that the student never takes
    gradient = xp.exp(teacher_logprobs) - student.probs if signal is forward_kl_signal else pushed
    taken_gradient = xp.take_along_axis(gradient, index, axis=-1)[:, 0] - xp.sum(student.probs * gradient, axis=-1)
    return ObjectiveRows(
        taken_signal=xp.take_along_axis(deviation, index, axis=-1)[:, 0],
        taken_gradient=taken_gradient,
        # p · f first: the square alone overflows float32 where p · f², which is q² / p, does not
        signal_variance=xp.sum(pushed * deviation, axis=-1),
        gradient_squared_norm=xp.sum(gradient * gradient, axis=-1),
    )


def screening_gain(
    outcomes: Float[np.ndarray, "*question rollout"], pushes: Float[np.ndarray, "*batch_and_question rollout"]
) -> Float[np.ndarray, "*batch_and_question"]:
    r"""Total gain of an objective on one question, from its ordinary rollouts alone.

    Args:
        outcomes: 1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE (left out); of one question or of several.
        pushes: Sum over positions of the centred signal at the taken token (natural gain) or of the centred gradient (Euclidean gain); axes of
            the questions come last but one.

    Returns:
        Success probability per unit step, summed over the positions of a response; unbiased. Zero if all outcomes agree. NaN with fewer
        than two verified rollouts.

    Raises:
        ShapeError: If the rollout axes differ in length.

    Notes:
        :math:`\hat G = \frac1n \sum_i (R_i - b_i) F_i` with the leave-one-out baseline :math:`b_i = \frac{1}{n-1}\sum_{k \ne i} R_k`,
        which is independent of rollout i, so that it lowers the variance and adds no bias. It equals the sample covariance of R and F with
        divisor n - 1; where rollouts are left out it estimates the derivative of the success rate among verifiable responses.

    References:
        Williams (1992), REINFORCE; Kool et al. (2019), leave-one-out baseline.

    Example:
        >>> round(float(screening_gain(np.array([1.0, 0.0]), np.array([0.5, -0.5]))), 6)
        0.5
    """
    if pushes.shape[pushes.ndim - outcomes.ndim :] != outcomes.shape:
        raise ShapeError(f"expected one push per outcome, shape {outcomes.shape} or more axes before it, found {pushes.shape}")
    verified = ~np.isnan(outcomes)
    count, known = verified.sum(axis=-1, keepdims=True), np.where(verified, outcomes, 0.0)
    advantages = known - (known.sum(axis=-1, keepdims=True) - known) / np.maximum(count - 1, 1)
    sums = np.sum(np.where(verified, advantages * pushes, 0.0), axis=-1)
    return np.where(count[..., 0] >= 2, sums / np.maximum(count[..., 0], 1), np.nan)


def value_corrections(
    outcomes: Float[np.ndarray, "*#batch rollout"],
    pushes: Float[np.ndarray, "*batch rollout"],
    weighted: Float[np.ndarray, "*batch rollout"],
) -> Float[np.ndarray, "*batch rollout"]:
    r"""What each rollout's part of a screening gain loses where fitted values of prefixes take the place of the leave-one-out baseline.

    Args:
        outcomes: As for :func:`screening_gain`.
        pushes: As there, :math:`F_i = \sum_t f_{i,t}`.
        weighted: The same sums weighted by the value of the prefix, :math:`\sum_t \hat V_{i,t} f_{i,t}`. The value must not depend on the
            rollout's outcome, nor on its token t or later ones.

    Returns:
        :math:`\sum_t (\hat V_{i,t} - b_i) f_{i,t}`, with mean zero: :math:`E[f_{i,t}] = 0` given all that value and baseline depend on. So their
        mean over *all* rollouts, the unverifiable ones included, may be subtracted from the gain.

    Example:
        >>> value_corrections(np.array([1.0, 0.0]), np.array([0.5, -0.5]), np.array([0.25, -0.25])).tolist()
        [0.25, 0.25]
    """
    verified = ~np.isnan(outcomes)
    others = np.nansum(outcomes, axis=-1, keepdims=True) - np.nan_to_num(outcomes)
    baseline = others / np.maximum(verified.sum(axis=-1, keepdims=True) - verified, 1)
    return weighted - baseline * pushes


def teacher_pushes(centred: Float[np.ndarray, "position"], lengths: Int[np.ndarray, "rollout"]) -> Float[np.ndarray, "rollout"]:
    """Sum of a centred per-position quantity over each response, in float64.

    Args:
        centred: All responses, one after another.
        lengths: Positions of each.

    Example:
        >>> teacher_pushes(np.array([1.0, 2.0, 4.0]), np.array([2, 0, 1])).tolist()
        [3.0, 0.0, 4.0]
    """
    sums = np.zeros(len(lengths))
    if np.any(lengths > 0):  # an empty response has no place to begin at
        starts = np.cumsum(lengths) - lengths
        sums[lengths > 0] = np.add.reduceat(centred, starts[lengths > 0], dtype=np.float64)
    return sums
