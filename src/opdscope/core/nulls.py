"""Teachers that know nothing about the question: what can be had for free, and what a real teacher has to beat."""

from typing import Any

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
        >>> import numpy as np
        >>> np.exp(tempered(np.log([0.8, 0.2]), 0.5)).round(3).tolist()
        [0.941, 0.059]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    xp = array_namespace(student_logprobs)
    scaled = student_logprobs / temperature
    shifted = scaled - xp.max(scaled, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
