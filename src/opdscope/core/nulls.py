"""Teachers that know nothing about the question: what can be had for free, and what a real teacher has to beat."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

Array = Any


def tempered(student_logprobs: Float[Array, "*batch vocab"], temperature: float) -> Float[Array, "*batch vocab"]:
    r"""The student itself at another temperature: sharpened below 1, flattened above.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        temperature: Relative to the student's own; 1 returns the student.

    Returns:
        Natural-log probabilities, :math:`\log\operatorname{softmax}(\log p / \tau)`.

    Raises:
        ValueError: If `temperature` is not positive.

    Notes:
        Its reverse-KL signal is :math:`(1/\tau - 1)\log p` up to a constant: every temperature pushes along one direction, and only the
        sign and size differ. So the reverse-KL gain of a null at one temperature gives, scaled, that at all others.

    Example:
        >>> np.exp(tempered(np.log([0.8, 0.2]), 0.5)).round(3).tolist()
        [0.941, 0.059]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    return _log_softmax(student_logprobs / temperature)


def random_logits(
    student_logprobs: Float[Array, "*batch vocab"], noise: Float[Array, "*batch vocab"], scale: float
) -> Float[Array, "*batch vocab"]:
    r"""A teacher that pushes at random: the student with noise on every logit.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        noise: Independent draws of mean zero that know nothing of the question, of the student's array type.
        scale: How hard it pushes; 0 returns the student.

    Returns:
        Natural-log probabilities, :math:`\log\operatorname{softmax}(\log p + \sigma z)`.

    Notes:
        Its reverse-KL signal is :math:`\sigma z` up to a constant, so that its gain is zero in expectation, and likewise under forward KL,
        where the signals of all tokens have one distribution. What it seems to gain is the noise of the estimate.

    Example:
        >>> np.exp(random_logits(np.log([0.5, 0.5]), np.array([1.0, -1.0]), 0.5)).round(3).tolist()
        [0.731, 0.269]
    """
    return _log_softmax(student_logprobs + scale * noise)


def matched_strength(strengths: Float[np.ndarray, "grid"], values: Float[np.ndarray, "grid"], wanted: float) -> float:
    """The strength at which a null reaches a wanted value, such as a temperature at which the student has a teacher's entropy.

    Args:
        strengths: Positive, rising.
        values: What each strength gives; rising with it.
        wanted: The value to reach.

    Returns:
        Interpolated between the logarithms of the strengths; an end of the grid where the wanted value lies outside.

    Example:
        >>> round(matched_strength(np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.4, 0.8]), 0.6), 3)
        1.414
    """
    return float(np.exp(np.interp(wanted, values, np.log(strengths))))


def _log_softmax(logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
