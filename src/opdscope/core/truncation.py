r"""Objectives truncated to a few tokens, as trainers truncate them to spare memory, and what that does to the direction of the push.

A trainer that keeps a support T of k tokens either renormalises both distributions over it, or adds one bucket for all other tokens.
Both are functions of the same p and q, so each has a signal :math:`f_j = -\partial D / \partial p_j` like any objective, and a natural gain.
Which tokens are in T is held fixed, as in trainers: nothing is differentiated through the choice.
"""

import numpy as np
from jaxtyping import Bool, Float

from opdscope.core.divergences import signal_of


def largest(values: Float[np.ndarray, "*batch stratum"], count: int) -> Bool[np.ndarray, "*batch stratum"]:
    """Where the `count` largest values of each row are; of equal ones the first.

    Example:
        >>> largest(np.array([0.1, 0.6, 0.3]), 2).tolist()
        [False, True, True]
    """
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    found = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(found, order, True, axis=-1)
    return found


def truncated_signal(
    student_probs: Float[np.ndarray, "*batch stratum"],
    teacher_probs: Float[np.ndarray, "*batch stratum"],
    inside: Bool[np.ndarray, "*batch stratum"],
    objective: str,
    tail_bucket: bool,
) -> Float[np.ndarray, "*batch stratum"]:
    r"""Signal of an objective that sees only the tokens of a support.

    Args:
        student_probs: Student probability of each stratum; zero is padding.
        teacher_probs: Teacher probability of each stratum.
        inside: The support. Its strata are single tokens; all others may be tails.
        objective: As the config names it: `reverse_kl`, `forward_kl`, `generalized_jsd(BETA)`.
        tail_bucket: Whether all tokens outside make up one bucket; else both distributions are renormalised over the support.

    Returns:
        The signal per stratum, equal for all tokens outside the support; zero everywhere where the support is one token without a bucket, since
        renormalised it has probability one under both.

    Notes:
        With a bucket the divergence is that of the coarser distributions, so :math:`f` is the objective's signal of token or bucket. Renormalised,
        :math:`\hat p_j = p_j / P_T`, the chain rule gives :math:`f_j = (\hat f_j - \sum_k \hat p_k \hat f_k) / P_T` inside and 0 outside.

    References:
        TRL, `loss_top_k` and `loss_add_tail` of its distillation trainers.

    Example:
        >>> p, q, top = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.1, 0.3]), np.array([True, False, False])
        >>> truncated_signal(p, q, top, "reverse_kl", tail_bucket=True).round(3).tolist()  # log(.6/.5), log(.4/.5)
        [0.182, -0.223, -0.223]
    """
    signal = signal_of(objective)
    mass, teacher_mass = (np.sum(np.where(inside, probs, 0.0), axis=-1, keepdims=True) for probs in (student_probs, teacher_probs))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if tail_bucket:
            outside, teacher_outside = (np.maximum(1.0 - total, 0.0) for total in (mass, teacher_mass))
            found = np.where(inside, signal(np.log(student_probs), np.log(teacher_probs)), signal(np.log(outside), np.log(teacher_outside)))
            return np.where(student_probs > 0, found, 0.0)
        share = np.where(inside, student_probs / mass, 0.0)
        own = np.where(share > 0, signal(np.log(share), np.log(teacher_probs / teacher_mass)), 0.0)
        centred = own - np.sum(share * own, axis=-1, keepdims=True)
        return np.where(inside & (student_probs > 0), centred / mass, 0.0)
