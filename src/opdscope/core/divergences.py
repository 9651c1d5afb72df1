r"""Objectives of distillation, each one a signal that the student's logits are pulled along.

Every objective is a divergence D(p, q) between the student's and the teacher's next-token distribution. What matters for the student is the
signal :math:`f_j = -\partial D / \partial p_j`, which :func:`opdscope.core.gradients.pullback` maps to the logits. A constant added to a
signal changes nothing. The functions take natural-log probabilities of the full vocabulary and work on any array of the array API standard
(numpy in analysis, torch on the scorer's device), so that each formula is written once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float

Array = Any
"""An array of the array API standard: numpy or torch."""

Signal = Callable[[Float[Array, "*batch vocab"], Float[Array, "*batch vocab"]], Float[Array, "*batch vocab"]]
"""From student and teacher log-probabilities to the signal of an objective."""


def reverse_kl_signal(
    student_logprobs: Float[Array, "*batch vocab"], teacher_logprobs: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch vocab"]:
    r"""Signal of reverse KL, KL(student ‖ teacher): by how many nats the teacher prefers each token more than the student does.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        teacher_logprobs: Natural-log probabilities of the teacher after the same response tokens.

    Returns:
        :math:`f_j = \log q_j - \log p_j`, in nats; -inf where only the teacher's probability is zero.

    Notes:
        :math:`-\partial/\partial p_j \sum_k p_k (\log p_k - \log q_k) = \log q_j - \log p_j - 1`; the constant is left out.

    References:
        Gu et al. (2024), MiniLLM, arXiv 2306.08543; Agarwal et al. (2024), GKD, arXiv 2306.13649.

    Example:
        >>> import numpy as np
        >>> reverse_kl_signal(np.log([0.5, 0.5]), np.log([0.8, 0.2])).round(3).tolist()
        [0.47, -0.916]
    """
    return teacher_logprobs - student_logprobs


def forward_kl_signal(
    student_logprobs: Float[Array, "*batch vocab"], teacher_logprobs: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch vocab"]:
    r"""Signal of forward KL, KL(teacher ‖ student): how many times as often the teacher takes each token.

    Args:
        student_logprobs: Natural-log probabilities of the student.
        teacher_logprobs: Natural-log probabilities of the teacher after the same response tokens.

    Returns:
        :math:`f_j = q_j / p_j`, no unit, mean 1 under the student. Heavy tail: it is huge on tokens that the student almost never takes.

    Notes:
        :math:`-\partial/\partial p_j \sum_k q_k (\log q_k - \log p_k) = q_j / p_j`.

    References:
        Agarwal et al. (2024), GKD, arXiv 2306.13649.

    Example:
        >>> import numpy as np
        >>> forward_kl_signal(np.log([0.5, 0.5]), np.log([0.8, 0.2])).round(3).tolist()
        [1.6, 0.4]
    """
    xp = array_namespace(student_logprobs, teacher_logprobs)
    return xp.exp(teacher_logprobs - student_logprobs)


def generalized_jsd_signal(
    student_logprobs: Float[Array, "*batch vocab"], teacher_logprobs: Float[Array, "*batch vocab"], beta: float
) -> Float[Array, "*batch vocab"]:
    r"""Signal of the generalised Jensen–Shannon divergence: forward KL in direction for `beta` towards 0, reverse KL towards 1 (as in TRL).

    Args:
        student_logprobs: Natural-log probabilities of the student.
        teacher_logprobs: Natural-log probabilities of the teacher after the same response tokens.
        beta: Weight of the teacher in the mixture, 0 < beta < 1.

    Returns:
        :math:`f_j = (1 - \beta)(\log m_j - \log p_j)` with :math:`m = \beta q + (1 - \beta) p`, in nats; bounded below by
        :math:`(1 - \beta)\log(1 - \beta)`.

    Raises:
        ValueError: If `beta` is not strictly between 0 and 1.

    Notes:
        The divergence is :math:`\beta\,KL(q‖m) + (1 - \beta)\,KL(p‖m)`; the terms through m cancel. The size of the signal shrinks with
        :math:`\beta` towards 0 and with :math:`1 - \beta` towards 1.

    References:
        Agarwal et al. (2024), GKD, arXiv 2306.13649, equation 1; TRL, `generalized_jsd_loss`.

    Example:
        >>> import numpy as np
        >>> generalized_jsd_signal(np.log([0.5, 0.5]), np.log([0.8, 0.2]), 0.5).round(3).tolist()
        [0.131, -0.178]
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must lie strictly between 0 (forward KL) and 1 (reverse KL), found {beta}")
    xp = array_namespace(student_logprobs, teacher_logprobs)
    log_ratio = teacher_logprobs - student_logprobs
    # log m - log p = log(1 - beta + beta q/p), without overflow where q/p is huge
    one = xp.ones_like(log_ratio)
    return (1.0 - beta) * xp.logaddexp(one * math.log(1.0 - beta), log_ratio + math.log(beta))


def check_objective(name: str) -> None:
    """Raise ValueError unless `name` is an objective as the config writes it."""
    base, beta = split_objective(name)
    if base not in ("reverse_kl", "forward_kl", "generalized_jsd"):
        raise ValueError(f"unknown objective {name!r}; expected reverse_kl, forward_kl or generalized_jsd(BETA)")
    if (base == "generalized_jsd") != (beta is not None):
        raise ValueError(f"objective {name!r}: generalized_jsd needs a BETA, as in generalized_jsd(0.5), and the others take none")
    if beta is not None and not 0 < beta < 1:
        raise ValueError(f"objective {name!r}: BETA must lie between 0 and 1; use forward_kl for 0 and reverse_kl for 1")


def split_objective(name: str) -> tuple[str, float | None]:
    """`generalized_jsd(0.5)` → (`generalized_jsd`, 0.5); a name without parentheses has no parameter.

    Raises:
        ValueError: If what stands in the parentheses is not a number, or they are not closed.
    """
    base, open_bracket, rest = name.partition("(")
    if not open_bracket:
        return base, None
    try:
        return base, float(rest.removesuffix(")") if rest.endswith(")") else "")
    except ValueError as error:
        raise ValueError(f"objective {name!r}: expected a number in parentheses, as in generalized_jsd(0.5)") from error


def signal_of(objective: str) -> Signal:
    """The signal function of an objective as the config names it: `reverse_kl`, `forward_kl`, `generalized_jsd(0.5)`.

    Raises:
        ValueError: If there is no such objective; the text names those there are.

    Example:
        >>> signal_of("forward_kl") is forward_kl_signal
        True
    """
    check_objective(objective)
    base, beta = split_objective(objective)
    if beta is not None:
        return partial(generalized_jsd_signal, beta=beta)
    return {"reverse_kl": reverse_kl_signal, "forward_kl": forward_kl_signal}[base]


def signal_scale(objective: str) -> float:
    r"""Size of an objective's signal relative to the KL divergences', where teacher and student are close.

    Raises:
        ValueError: If there is no such objective.

    Notes:
        With q = p (1 + ε) the signals are ε for both KL divergences and :math:`\beta (1 - \beta) \varepsilon` for the generalised JSD, to first
        order and up to a constant. A gain is linear in the signal, so that gains of different objectives compare at equal size of the push only
        when divided by this.

    Example:
        >>> signal_scale("reverse_kl"), signal_scale("generalized_jsd(0.5)")
        (1.0, 0.25)
    """
    check_objective(objective)
    _, beta = split_objective(objective)
    return 1.0 if beta is None else beta * (1.0 - beta)


def kl_divergence(first_logprobs: Float[Array, "*batch vocab"], second_logprobs: Float[Array, "*batch vocab"]) -> Float[Array, "*batch"]:
    r"""KL(first ‖ second) in nats, :math:`\sum_j a_j (\log a_j - \log b_j)`; tokens that `first` never takes count zero.

    Example:
        >>> import numpy as np
        >>> round(float(kl_divergence(np.log([0.5, 0.5]), np.log([0.8, 0.2]))), 4)
        0.2231
    """
    xp = array_namespace(first_logprobs, second_logprobs)
    probs = xp.exp(first_logprobs)
    possible, zeros = probs > 0, xp.zeros_like(probs)
    # masked before the arithmetic: -inf - (-inf) and 0 · inf would be right to drop, but numpy warns of them
    return xp.sum(probs * (xp.where(possible, first_logprobs, zeros) - xp.where(possible, second_logprobs, zeros)), axis=-1)


def entropy(logprobs: Float[Array, "*batch vocab"]) -> Float[Array, "*batch"]:
    r"""Shannon entropy in nats, :math:`-\sum_j p_j \log p_j`; impossible tokens count zero.

    Example:
        >>> import numpy as np
        >>> round(float(entropy(np.log([0.5, 0.5]))), 4)
        0.6931
    """
    xp = array_namespace(logprobs)
    probs = xp.exp(logprobs)
    return -xp.sum(probs * xp.where(probs > 0, logprobs, xp.zeros_like(probs)), axis=-1)
