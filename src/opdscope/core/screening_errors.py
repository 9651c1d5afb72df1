r"""How far the screening gain of one question may be off: from how its own rollouts differ, and from the run's other questions.

A question has few rollouts. The error that they state alone is small by chance just where the gain comes out too near to zero, since both rest on the
same few outcomes that differ; so intervals from it cover too little for a teacher that knows something, and too much for one that does not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.errors import ShapeError

_ADDED_WEIGHT, _ADDED_OUTCOMES = 8, 2
"""What a question's own error knows beforehand: so many rollouts' worth of a gain of zero, so many successes and failures."""

PRIOR_FREEDOM = 40.0
"""Degrees of freedom that the other questions of a run are worth, at most, beside a question's own."""

_LEAST_FOR_VARIANCE = 4
"""Verified rollouts from which on the variance of a gain has an unbiased estimate."""


@dataclass(frozen=True)
class _Centred:
    """Verified outcomes and their pushes, less their means; zero where a rollout is left out."""

    count: Int[np.ndarray, "*question"]
    verified: Bool[np.ndarray, "*question rollout"]
    outcomes: Float[np.ndarray, "*question rollout"]
    """As they are."""
    deviations: Float[np.ndarray, "*question rollout"]
    """Of the outcomes."""
    pushes: Float[np.ndarray, "*batch_and_question rollout"]


def _centred(outcomes: Float[np.ndarray, "*question rollout"], pushes: Float[np.ndarray, "*batch_and_question rollout"]) -> _Centred:
    if pushes.shape[pushes.ndim - outcomes.ndim :] != outcomes.shape:
        raise ShapeError(f"expected one push per outcome, shape {outcomes.shape} or more axes before it, found {pushes.shape}")
    verified = ~np.isnan(outcomes)
    count = verified.sum(axis=-1)
    size = np.maximum(count, 1)[..., None]
    known, own = np.where(verified, outcomes, 0.0), np.where(verified, pushes, 0.0)
    deviations = np.where(verified, known - known.sum(axis=-1, keepdims=True) / size, 0.0)
    return _Centred(count, verified, known, deviations, np.where(verified, own - own.sum(axis=-1, keepdims=True) / size, 0.0))


def screening_error(
    outcomes: Float[np.ndarray, "*question rollout"], pushes: Float[np.ndarray, "*batch_and_question rollout"]
) -> Float[np.ndarray, "*batch_and_question"]:
    r"""Standard error of :func:`~opdscope.core.screening.screening_gain` on one question, from how its own rollouts differ.

    Args:
        outcomes: As there, of one question or of several.
        pushes: As there; axes of the questions come last but one.

    Returns:
        Success probability per unit step; not zero where all outcomes agree. NaN with fewer than three verified rollouts.

    Raises:
        ShapeError: If the rollout axes differ in length.

    Notes:
        The jackknife over rollouts, in which leaving rollout i out of a covariance changes it by a multiple of
        :math:`(R_i - \bar R)(F_i - \bar F) - \hat G (n - 1)/n`, so that no refitting is needed; and with the weight of eight rollouts the variance
        that the gain would have if it were zero, :math:`E[(R - \rho)^2 (F - \bar F)^2] / (n - 1)`, in which two successes and two failures with
        pushes of average size are added to what was seen. Alone the jackknife is zero where few rollouts happen to agree: its 90 % intervals,
        8 rollouts a question, covered 80 % for teachers that know something. Where a run has other questions, see :func:`moderated_errors`.

    References:
        Efron and Stein (1981), The jackknife estimate of variance; Agresti and Coull (1998), for what is added.

    Example:
        >>> round(float(screening_error(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.5, -0.5, 0.3, -0.1]))), 4)
        0.1111
        >>> round(float(screening_error(np.ones(4), np.array([0.5, -0.5, 0.3, -0.1]))), 4)
        0.0886
    """
    own = _centred(outcomes, pushes)
    products, count = own.deviations * own.pushes, np.maximum(own.count, 3)
    # the sum of squares without rollout i is the whole one minus n / (n - 1) times its product; divided by n - 2 for the covariance
    left_out = np.where(own.verified, products - products.sum(axis=-1, keepdims=True) / count[..., None], 0.0)
    jackknife = count / ((count - 1) * (count - 2) ** 2) * np.sum(left_out**2, axis=-1)
    error = np.sqrt((count * jackknife + _ADDED_WEIGHT * _variance_without_gain(own, count)) / (count + _ADDED_WEIGHT))
    return np.where(own.count >= 3, error, np.nan)


def _variance_without_gain(own: _Centred, count: Int[np.ndarray, "*question"]) -> Float[np.ndarray, "*batch_and_question"]:
    right, squares = own.outcomes.sum(axis=-1), own.pushes**2
    chance, total = (right + _ADDED_OUTCOMES) / (count + 2 * _ADDED_OUTCOMES), np.sum(squares, axis=-1)
    added, successes = _ADDED_OUTCOMES * total / (count - 1), np.sum(squares * own.outcomes, axis=-1)
    of_right = (successes + added) / (right + _ADDED_OUTCOMES)
    of_wrong = (total - successes + added) / (count - right + _ADDED_OUTCOMES)
    return chance * (1.0 - chance) * ((1.0 - chance) * of_right + chance * of_wrong) / (count - 1)


def screening_variance(
    outcomes: Float[np.ndarray, "*question rollout"], pushes: Float[np.ndarray, "*batch_and_question rollout"]
) -> Float[np.ndarray, "*batch_and_question"]:
    r"""Unbiased estimate of the variance of :func:`~opdscope.core.screening.screening_gain` on one question.

    Args:
        outcomes: As for :func:`screening_error`.
        pushes: As there.

    Returns:
        Squared success probability per unit step; may be negative. It is for averages over questions, of which jackknives, too large by a fifth
        with eight rollouts, would keep the bias. NaN with fewer than four verified rollouts.

    Raises:
        ShapeError: If the rollout axes differ in length.

    Notes:
        :math:`\operatorname{Var}(k_{11}) = \kappa_{22}/n + (\kappa_{20}\kappa_{02} + \kappa_{11}^2)/(n - 1)` of a sample covariance. The k-statistic
        :math:`k_{22}` is unbiased for :math:`\kappa_{22}`; with it :math:`E[k_{20} k_{02}] = \kappa_{20}\kappa_{02} + \kappa_{22}/n +
        2\kappa_{11}^2/(n-1)` and :math:`E[k_{11}^2] = \kappa_{11}^2 + \operatorname{Var}(k_{11})` are solved for the rest.

    References:
        Stuart and Ord (1994), Kendall's Advanced Theory of Statistics, volume 1, sections 12.17 and 13.2, for bivariate k-statistics.

    Example:
        >>> round(float(screening_variance(np.array([1.0, 0.0, 1.0, 0.0, 1.0]), np.array([0.5, -0.5, 0.3, -0.1, 0.0]))), 6)
        0.0029
    """
    own = _centred(outcomes, pushes)
    n = np.maximum(own.count, _LEAST_FOR_VARIANCE).astype(np.float64)
    first, second = own.deviations**2, own.pushes**2
    m20, m02 = first.sum(axis=-1) / n, second.sum(axis=-1) / n
    m11, m22 = np.sum(own.deviations * own.pushes, axis=-1) / n, np.sum(first * second, axis=-1) / n
    k22 = n**2 / ((n - 1) * (n - 2) * (n - 3)) * ((n + 1) * m22 - (n - 1) * (m20 * m02 + 2.0 * m11**2))
    scale = (n / (n - 1)) ** 2
    of_spreads, of_covariance = scale * m20 * m02 - k22 / n, scale * m11**2 - k22 / n
    squared = (of_covariance - of_spreads / (n - 1)) * (n - 1) ** 2 / ((n - 2) * (n + 1))
    variance = k22 / n + (of_spreads + squared * (n - 3) / (n - 1)) / (n - 1)
    return np.where(own.count >= _LEAST_FOR_VARIANCE, variance, np.nan)


@dataclass(frozen=True)
class ModeratedErrors:
    """Errors of the gains of single questions of one run."""

    error: Float[np.ndarray, "*batch question"]
    """Standard error in success probability per unit step; NaN with fewer than three verified rollouts."""
    freedom: Float[np.ndarray, "*batch question"]
    """Degrees of freedom of Student's t for an interval of one question."""


def moderated_errors(
    outcomes: Float[np.ndarray, "question rollout"],
    pushes: Float[np.ndarray, "*batch question rollout"],
    push_variance: Float[np.ndarray, "*batch question"],
) -> ModeratedErrors:
    r"""Standard error of each question's screening gain, from its own rollouts and from the run's other questions.

    Args:
        outcomes: 1 for CORRECT, 0 for INCORRECT and TRUNCATED; NaN is left out.
        pushes: Of one teacher and objective, summed over each response.
        push_variance: Variance of a response's push under the student: the mean over rollouts of :math:`\sum_t \operatorname{Var}_p(f_t)`, which is
            exact at each position and owes nothing to tokens or outcomes.

    Raises:
        ShapeError: If shapes do not agree.

    Notes:
        :math:`s_q^2 = (d_q e_q^2 + d_0 c\, v_q) / (d_q + d_0)`: e is :func:`screening_error` with :math:`d_q = n_q - 1` degrees of freedom, v the
        push variance and c the mean over questions of :func:`screening_variance` / v, at least zero. The prior's :math:`d_0` is
        :data:`PRIOR_FREEDOM`, or the degrees of freedom of the other questions where these are fewer. It is a constant, chosen by coverage in
        the chain world, and not fitted to each run as in Smyth's moderated t: how far own variances tell questions apart can be had from split
        halves, but an own variance goes along with its gain's error, and intervals that trust it as far as it deserves cover 81 to 87 %.

        With :math:`d_q + d_0` degrees of freedom a 90 % interval covers 90 % on average over the questions of a run, not given what kind of
        question it is: where half the questions are nearly always answered, the others' intervals cover 78 to 86 % with 8 rollouts.

    References:
        Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression, section 4.

    Example:
        >>> outcomes = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
        >>> pushes = np.array([[0.5, -0.5, 0.3, -0.1], [0.5, -0.5, 0.3, -0.1]])
        >>> found = moderated_errors(outcomes, pushes, np.array([0.2, 0.2]))
        >>> found.error.round(4).tolist(), found.freedom.tolist()
        ([0.0785, 0.0627], [6.0, 6.0])
    """
    if pushes.shape[:-1] != push_variance.shape:
        raise ShapeError(f"expected one push variance per question, of shape {pushes.shape[:-1]}, found {push_variance.shape}")
    own, variance = screening_error(outcomes, pushes), screening_variance(outcomes, pushes)
    pooled = ~np.isnan(variance) & (push_variance > 0)
    ratios = np.where(pooled, variance / np.where(pooled, push_variance, 1.0), 0.0)
    number = pooled.sum(axis=-1, keepdims=True)
    expected = push_variance * np.maximum(ratios.sum(axis=-1, keepdims=True) / np.maximum(number, 1), 0.0)
    freedom = np.maximum(np.sum(~np.isnan(outcomes), axis=-1) - 1.0, 0.0)
    shared = np.where(pooled, freedom, 0.0)
    prior = np.minimum(PRIOR_FREEDOM, shared.sum(axis=-1, keepdims=True) - shared)
    total = freedom + prior
    return ModeratedErrors(np.sqrt((freedom * own**2 + prior * expected) / np.maximum(total, 1.0)), total)
