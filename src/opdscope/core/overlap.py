r"""Agreement of student and teacher on the tokens that either holds likely: free rivals of the gain that need no outcome."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int

Array = Any

TOP_TOKENS = 16
"""Size of the two sets of likely tokens; a quarter of the vocabulary where that is smaller."""


def num_top(vocab_size: int) -> int:
    """How many likely tokens are compared: :data:`TOP_TOKENS`, or a quarter of a small vocabulary, at least one."""
    return max(1, min(TOP_TOKENS, vocab_size // 4))


def top_tokens(logprobs: Float[Array, "row vocab"]) -> Int[Array, "row top"]:
    """The likeliest tokens of each row, in no particular order.

    Example:
        >>> sorted(top_tokens(np.log([[0.4, 0.1, 0.3, 0.05, 0.05, 0.04, 0.03, 0.03]]))[0].tolist())
        [0, 2]
    """
    count = num_top(logprobs.shape[-1])
    if isinstance(logprobs, np.ndarray):
        return np.argpartition(logprobs, -count, axis=-1)[:, -count:]
    return array_namespace(logprobs).topk(logprobs, count, dim=-1, sorted=False).indices


def overlap(
    student_logprobs: Float[Array, "row vocab"], student_top: Int[Array, "row top"], teacher_logprobs: Float[Array, "row vocab"]
) -> tuple[Float[Array, "row"], Float[Array, "row"]]:
    r"""Overlap ratio and overlap-token advantage at each position.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        student_top: Its likeliest tokens, from :func:`top_tokens`.
        teacher_logprobs: Natural-log probabilities of the teacher.

    Returns:
        Share of the student's likeliest tokens that are among the teacher's, in [0, 1], and the mean over the shared tokens of
        :math:`\bar p (\log \bar q - \log \bar p)` in nats, with both renormalised on them: zero or below, and zero where they agree. Where no
        token is shared the advantage is zero, as in the paper's code.

    References:
        arXiv 2604.13016, equations 6 and 7.

    Example:
        >>> p = np.log([[0.4, 0.1, 0.3, 0.05, 0.05, 0.04, 0.03, 0.03]])
        >>> [float(x[0]) for x in overlap(p, top_tokens(p), p)]
        [1.0, 0.0]
    """
    xp = array_namespace(student_logprobs)
    ours = xp.take_along_axis(student_logprobs, student_top, axis=-1)
    theirs = xp.take_along_axis(teacher_logprobs, student_top, axis=-1)
    least = xp.min(xp.take_along_axis(teacher_logprobs, top_tokens(teacher_logprobs), axis=-1), axis=-1, keepdims=True)
    shared = (theirs >= least) & (theirs > -float("inf"))
    zeros, count = xp.zeros_like(ours), xp.sum(xp.astype(shared, ours.dtype), axis=-1)
    p, q = (xp.where(shared, xp.exp(values), zeros) for values in (ours, theirs))
    some = xp.where(count > 0, count, xp.ones_like(count))
    p_mass, q_mass = (xp.where(count > 0, xp.sum(values, axis=-1), xp.ones_like(count)) for values in (p, q))
    log_ratio = xp.where(shared, theirs, zeros) - xp.where(shared, ours, zeros)
    # the mean of log(q / p) under the renormalised student, and the two normalisers
    total = xp.sum(p * log_ratio, axis=-1) / p_mass - xp.log(q_mass) + xp.log(p_mass)
    return count / ours.shape[-1], xp.where(count > 0, total / some, xp.zeros_like(count))
