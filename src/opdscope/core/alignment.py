r"""What is reported about one (node, teacher, objective): score, gain, natural gain, natural alignment, teacher advantage.

The vocabulary at a node is split into strata: each candidate token is one, and the *tail* stratum is the rest of the student's
distribution. Signals and gradients of the tail enter as their student-weighted means, so that every covariance below equals the
full-vocabulary one when the tokens of the tail succeed equally often. All functions broadcast over leading axes (nodes, posterior draws); a
padded stratum has log probability -inf, and any finite signal and success. What float32 rounding adds to a sum of probabilities is divided
out.
"""

import numpy as np
from jaxtyping import Float

from opdscope.errors import NormalizationError, ShapeError

_NORMALIZATION_TOLERANCE = 1e-4
"""Rows of torch's float32 log-softmax over 152,000 tokens were found to miss one by up to 2e-5; a forgotten tail misses it by far more."""


def natural_gain(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    signal: Float[np.ndarray, "*batch stratum"],
    success: Float[np.ndarray, "*batch stratum"],
) -> Float[np.ndarray, "*batch"]:
    r"""Rate at which the chance of success rises when the student moves along an objective.

    Covariance, under the student, of success and signal at one node. Positive: the objective pushes towards success.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one over `stratum` (the tail is a stratum).
        signal: Ascent signal of the objective per stratum, in nats for the KL family; a constant added to it changes nothing.
        success: Success probability per stratum, in [0, 1].

    Returns:
        Gain per unit step, in success probability per nat of signal. Zero where all strata succeed equally often. NaN where a success is
        NaN.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Notes:
        :math:`\operatorname{Cov}_p(S, f) = \sum_j p_j (S_j - V) f_j`. Summed over the nodes of on-policy rollouts it is the derivative of
        the success rate along the objective's natural gradient; for forward KL it equals the teacher advantage. Linear in `success`, hence
        unbiased under it.

    References:
        Sutton et al. (2000), policy gradient theorem; Kakade (2001), natural policy gradient.

    Example:
        >>> gain = natural_gain(np.log([0.5, 0.5]), np.array([1.0, -1.0]), np.array([0.8, 0.2]))
        >>> round(float(gain), 6)
        0.3
    """
    probs = _stratum_probs(student_logprobs, signal, success)
    advantage = success - np.sum(probs * success, axis=-1, keepdims=True)
    return np.sum(probs * advantage * signal, axis=-1)


def gain_variance(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    signal: Float[np.ndarray, "*batch stratum"],
    success_variance: Float[np.ndarray, "*batch stratum"],
    correlations: Float[np.ndarray, "*batch stratum stratum"] | None = None,
) -> Float[np.ndarray, "*batch"]:
    r"""Variance of a natural gain; with a gradient in place of the signal, of a gain.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        signal: As for :func:`natural_gain`.
        success_variance: Variance of each stratum's estimated success.
        correlations: Of these estimates, where continuations share random numbers; None: they are independent.

    Returns:
        :math:`\sum_j p_j^2 (f_j - \bar f)^2 \operatorname{Var}(\hat S_j)`, and the covariances where there are some.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Example:
        >>> round(float(gain_variance(np.log([0.5, 0.5]), np.array([1.0, -1.0]), np.array([0.02, 0.04]))), 6)
        0.015
    """
    probs = _stratum_probs(student_logprobs, signal, success_variance)
    return variance_of_sum(probs * (signal - np.sum(probs * signal, axis=-1, keepdims=True)), success_variance, correlations)


def variance_of_sum(
    weights: Float[np.ndarray, "*batch stratum"],
    variance: Float[np.ndarray, "*batch stratum"],
    correlations: Float[np.ndarray, "*batch stratum stratum"] | None,
) -> Float[np.ndarray, "*batch"]:
    r"""Variance of :math:`\sum_j w_j \hat S_j`; without correlations :math:`\sum_j w_j^2 \operatorname{Var}(\hat S_j)`.

    A variance that is estimated without bias may be negative; it then varies with no other.

    Example:
        >>> float(variance_of_sum(np.array([1.0, -1.0]), np.array([0.5, 0.5]), np.array([[1.0, 0.5], [0.5, 1.0]])).round(6))
        0.5
    """
    alone = np.sum(weights**2 * variance, axis=-1)
    if correlations is None:
        return alone
    parts = weights * np.sqrt(np.maximum(variance, 0.0))
    return alone + np.einsum("...j,...jk,...k->...", parts, correlations, parts) - np.sum(parts**2, axis=-1)


def advantage_variance(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    teacher_probs: Float[np.ndarray, "*batch stratum"],
    success_variance: Float[np.ndarray, "*batch stratum"],
    correlations: Float[np.ndarray, "*batch stratum stratum"] | None = None,
) -> Float[np.ndarray, "*batch"]:
    r"""Variance of a teacher advantage, :math:`\sum_j (q_j - p_j)^2 \operatorname{Var}(\hat S_j)`, and covariances as in :func:`gain_variance`.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If the student's or the teacher's probabilities do not sum to one within 1e-4.

    Example:
        >>> round(float(advantage_variance(np.log([0.5, 0.5]), np.array([0.8, 0.2]), np.array([0.02, 0.04]))), 6)
        0.0054
    """
    probs = _stratum_probs(student_logprobs, teacher_probs, success_variance)
    return variance_of_sum(_normalized(teacher_probs, "teacher", may_be_undefined=True) - probs, success_variance, correlations)


def gain(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    gradient: Float[np.ndarray, "*batch stratum"],
    success: Float[np.ndarray, "*batch stratum"],
) -> Float[np.ndarray, "*batch"]:
    r"""Inner product of ideal and distillation gradient: how much following the objective helps here, in the logits' own metric.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        gradient: Distillation gradient per stratum (ascent); for the tail its student-weighted mean.
        success: Success probability per stratum, in [0, 1].

    Returns:
        Success probability per unit step along the gradient; positive where the objective helps. NaN where a success is NaN.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Notes:
        :math:`\langle g^*, d \rangle = \sum_j p_j (S_j - V) d_j = \operatorname{Cov}_p(S, d)`: the natural gain's formula with d in place
        of f.

    Example:
        >>> round(float(gain(np.log([0.5, 0.5]), np.array([0.3, -0.3]), np.array([0.8, 0.2]))), 6)
        0.09
    """
    return natural_gain(student_logprobs, gradient, success)


def ideal_squared_norm(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    squared_probs: Float[np.ndarray, "*batch stratum"],
    success: Float[np.ndarray, "*batch stratum"],
) -> Float[np.ndarray, "*batch"]:
    r"""Squared length of the ideal gradient: how much there is to teach here at all.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        squared_probs: :math:`\sum_j p_j^2` over the tokens of each stratum; for a candidate its probability squared.
        success: Success probability per stratum, in [0, 1].

    Returns:
        :math:`\|g^*\|^2 = \sum_j p_j^2 (S_j - V)^2`; zero where all strata succeed equally often.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Example:
        >>> round(float(ideal_squared_norm(np.log([0.5, 0.5]), np.array([0.25, 0.25]), np.array([0.8, 0.2]))), 6)
        0.045
    """
    probs = _stratum_probs(student_logprobs, squared_probs, success)
    advantage = success - np.sum(probs * success, axis=-1, keepdims=True)
    return np.sum(squared_probs * advantage**2, axis=-1)


def alignment_score(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    squared_probs: Float[np.ndarray, "*batch stratum"],
    gradient: Float[np.ndarray, "*batch stratum"],
    gradient_squared_norm: Float[np.ndarray, "*batch"],
    success: Float[np.ndarray, "*batch stratum"],
) -> Float[np.ndarray, "*batch"]:
    r"""Cosine of ideal and distillation gradient: how much of the push is useful.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        squared_probs: :math:`\sum_j p_j^2` over the tokens of each stratum.
        gradient: Distillation gradient per stratum (ascent); for the tail its student-weighted mean.
        gradient_squared_norm: :math:`\|d\|^2` over the full vocabulary.
        success: Success probability per stratum, in [0, 1].

    Returns:
        A number in [-1, 1]. NaN where there is nothing to compare: no success range, or no push.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Notes:
        :math:`\cos(g^*, d)`. A ratio: noise in `success` biases it towards zero, so it is never reported without an interval from
        posterior draws.

    References:
        arXiv 2605.10889, alignment score.

    Example:
        >>> gradient, success = np.array([0.3, -0.3]), np.array([0.8, 0.2])
        >>> score = alignment_score(np.log([0.5, 0.5]), np.array([0.25, 0.25]), gradient, np.array(0.18), success)
        >>> round(float(score), 6)
        1.0
    """
    product = gain(student_logprobs, gradient, success)
    scale = np.sqrt(ideal_squared_norm(student_logprobs, squared_probs, success) * gradient_squared_norm)
    return _ratio(product, scale)


def natural_alignment(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    signal: Float[np.ndarray, "*batch stratum"],
    signal_variance: Float[np.ndarray, "*batch"],
    success: Float[np.ndarray, "*batch stratum"],
    success_variance: Float[np.ndarray, "*batch"] | None = None,
) -> Float[np.ndarray, "*batch"]:
    r"""Correlation, under the student, of success and signal: the cosine of the two gradients in the Fisher metric.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        signal: Signal per stratum; for the tail its student-weighted mean.
        signal_variance: :math:`\operatorname{Var}_p(f)` over the full vocabulary.
        success: Success probability per stratum, in [0, 1].
        success_variance: :math:`\operatorname{Var}_p(S)` if it is known already, which it is for all teachers but the first.

    Returns:
        A number in [-1, 1]. NaN where there is no success range or no push.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Notes:
        :math:`\operatorname{Corr}_p(S, f)`.

    References:
        Kakade (2001), natural policy gradient.

    Example:
        >>> round(float(natural_alignment(np.log([0.5, 0.5]), np.array([1.0, -1.0]), np.array(1.0), np.array([0.8, 0.2]))), 6)
        1.0
    """
    covariance = natural_gain(student_logprobs, signal, success)
    if success_variance is None:
        # the weights p make Σ p (S - V)² out of the squared-norm formula; centred squares, so that equal successes give zero and not rounding
        success_variance = ideal_squared_norm(student_logprobs, np.exp(student_logprobs), success)
    return _ratio(covariance, np.sqrt(success_variance * signal_variance))


def teacher_advantage(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    teacher_probs: Float[np.ndarray, "*batch stratum"],
    success: Float[np.ndarray, "*batch stratum"],
) -> Float[np.ndarray, "*batch"]:
    r"""How much more often the node succeeds if the teacher chooses one token and the student finishes.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        teacher_probs: The teacher's probability of each stratum, summing to one; NaN where its logits were not finite.
        success: Success probability per stratum, in [0, 1].

    Returns:
        :math:`\sum_j (q_j - p_j) S_j`, in success probability, in [-1, 1]. Equals the natural gain of forward KL. NaN where the teacher is.

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If the student's or the teacher's probabilities do not sum to one within 1e-4.

    Example:
        >>> round(float(teacher_advantage(np.log([0.5, 0.5]), np.array([0.8, 0.2]), np.array([0.8, 0.2]))), 6)
        0.18
    """
    probs = _stratum_probs(student_logprobs, teacher_probs, success)
    return np.sum((_normalized(teacher_probs, "teacher", may_be_undefined=True) - probs) * success, axis=-1)


def ideal_norm_noise(
    student_logprobs: Float[np.ndarray, "*batch stratum"],
    squared_probs: Float[np.ndarray, "*batch stratum"],
    success_variance: Float[np.ndarray, "*batch stratum"],
    correlations: Float[np.ndarray, "*batch stratum stratum"] | None = None,
) -> Float[np.ndarray, "*batch"]:
    r"""What sampling noise adds, in expectation, to the squared length of an estimated ideal gradient.

    Args:
        student_logprobs: Natural-log probabilities of the strata, summing to one.
        squared_probs: :math:`\sum_j p_j^2` over the tokens of each stratum.
        success_variance: Unbiased variance of each stratum's estimated success; strata are estimated independently, each from its own
            continuations (a stratum that borrows the node's value is not, and makes the result inexact by the order of its mass).
        correlations: Of these estimates, where continuations share random numbers; None: they are independent.

    Returns:
        :math:`\sum_j s_j \operatorname{Var}(\hat S_j - \hat V)` with :math:`s_j` the squared probabilities; subtract it from the plug-in
        :func:`ideal_squared_norm` for an unbiased estimate (which may be negative).

    Raises:
        ShapeError: If the stratum axes differ in length.
        NormalizationError: If probabilities do not sum to one within 1e-4.

    Notes:
        :math:`\operatorname{Var}(\hat S_j - \hat V) = v_j - 2 \sum_k p_k c_{jk} + \operatorname{Var}(\hat V)` with :math:`c_{jk}` the covariances;
        independent, :math:`(1 - 2 p_j) v_j + \sum_k p_k^2 v_k`.

    Example:
        >>> round(float(ideal_norm_noise(np.log([0.5, 0.5]), np.array([0.25, 0.25]), np.array([0.01, 0.01]))), 6)
        0.0025
    """
    probs = _stratum_probs(student_logprobs, squared_probs, success_variance)
    value_variance = variance_of_sum(probs, success_variance, correlations)[..., None]
    with_value = probs * success_variance
    if correlations is not None:
        deviation = np.sqrt(np.maximum(success_variance, 0.0))
        with_value = with_value + deviation * np.einsum("...jk,...k->...j", correlations, probs * deviation) - probs * deviation**2
    return np.sum(squared_probs * (success_variance - 2.0 * with_value + value_variance), axis=-1)


def _stratum_probs(student_logprobs: Float[np.ndarray, "*batch stratum"], *others: np.ndarray) -> Float[np.ndarray, "*batch stratum"]:
    for other in others:
        if other.shape[-1:] != student_logprobs.shape[-1:]:
            raise ShapeError(f"expected {student_logprobs.shape[-1:]} strata as in the log-probabilities, found {other.shape[-1:]}")
    return _normalized(np.exp(student_logprobs), "student")


def _normalized(
    probs: Float[np.ndarray, "*batch stratum"], whose: str, may_be_undefined: bool = False
) -> Float[np.ndarray, "*batch stratum"]:
    total = np.sum(probs, axis=-1, keepdims=True)
    right = np.abs(total - 1.0) <= _NORMALIZATION_TOLERANCE
    if not np.all(right | np.isnan(total) if may_be_undefined else right):
        worst = float(np.ravel(total)[np.argmax(np.abs(np.ravel(total) - 1.0))])
        raise NormalizationError(
            f"stratum probabilities of the {whose} sum to {worst:.8f}; expected 1 within {_NORMALIZATION_TOLERANCE:g}: "
            "is the tail stratum missing?"
        )
    # without this a sum of 1 + 1e-5 would show as an advantage of -1e-5 where all strata succeed equally often
    return probs / total


def _ratio(numerator: Float[np.ndarray, "*batch"], scale: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    # 1e-12 is far above float32 rounding squared and far below any push that matters: without it 0/0 becomes a random sign
    defined = scale > 1e-12
    return np.where(defined, np.clip(numerator / np.where(defined, scale, 1.0), -1.0, 1.0), np.nan)
