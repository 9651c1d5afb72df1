r"""One map from a signal to a gradient on logits, and the two gradients that are compared.

All gradients are *ascent* directions on the student's next-token logits at one node.
"""

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float

from opdscope.core.divergences import forward_kl_signal, signal_of

Array = Any


def pullback(student_probs: Float[Array, "*batch vocab"], signal: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
    r"""Ascent direction on the logits for a signal on the probabilities: the signal seen through the softmax.

    Args:
        student_probs: Probabilities of the student, summing to one over `vocab`.
        signal: What is gained per unit of probability moved to each token; a constant added to it changes nothing.

    Returns:
        :math:`p_j (f_j - \sum_k p_k f_k)`, in units of the signal; sums to zero. Zero where the student's probability is zero.

    Notes:
        The transpose of the softmax Jacobian, :math:`\operatorname{diag}(p) - p p^\top`, applied to f.

    Example:
        >>> import numpy as np
        >>> pullback(np.array([0.5, 0.5]), np.array([1.0, 0.0])).tolist()
        [0.25, -0.25]
    """
    xp = array_namespace(student_probs, signal)
    # masked before the product: where p is zero the signal may be infinite
    weighted = student_probs * xp.where(student_probs > 0, signal, xp.zeros_like(student_probs))
    return weighted - student_probs * xp.sum(weighted, axis=-1, keepdims=True)


def ideal_gradient(student_probs: Float[Array, "*batch vocab"], success: Float[Array, "*batch vocab"]) -> Float[Array, "*batch vocab"]:
    r"""The exact local policy gradient: the direction on the logits that raises the node's chance of success fastest.

    Args:
        student_probs: Probabilities of the student.
        success: Success probability of each token when the student finishes, in [0, 1].

    Returns:
        :math:`g^*_j = p_j (S_j - V)` with :math:`V = \sum_j p_j S_j`, in success probability per unit of logit. Zero where all tokens
        succeed equally often.

    References:
        Sutton et al. (2000), policy gradient theorem. Dr. GRPO (Liu et al., 2025) recovers it in expectation.

    Example:
        >>> import numpy as np
        >>> ideal_gradient(np.array([0.5, 0.5]), np.array([1.0, 0.0])).tolist()
        [0.25, -0.25]
    """
    return pullback(student_probs, success)


def distillation_gradient(
    student_logprobs: Float[Array, "*batch vocab"], teacher_logprobs: Float[Array, "*batch vocab"], objective: str
) -> Float[Array, "*batch vocab"]:
    r"""The direction on the logits that an objective pushes the student along: minus the gradient of its loss.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        teacher_logprobs: Natural-log probabilities of the teacher.
        objective: As the config names it, for example `reverse_kl`.

    Returns:
        :math:`d = \operatorname{pullback}(p, f)`, in nats per unit of logit; zero if teacher and student agree. For forward KL the closed
        form :math:`q - p` is used, which stays finite where the student's probability underflows.

    Raises:
        ValueError: If there is no such objective.

    Example:
        >>> import numpy as np
        >>> distillation_gradient(np.log([0.5, 0.5]), np.log([0.8, 0.2]), "forward_kl").round(3).tolist()
        [0.3, -0.3]
    """
    xp = array_namespace(student_logprobs, teacher_logprobs)
    signal = signal_of(objective)
    if signal is forward_kl_signal:
        return xp.exp(teacher_logprobs) - xp.exp(student_logprobs)
    return pullback(xp.exp(student_logprobs), signal(student_logprobs, teacher_logprobs))
