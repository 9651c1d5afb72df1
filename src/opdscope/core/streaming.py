r"""Screening while a student trains: the gain of one step's rollouts, and an exponentially weighted series of them with intervals.

A step has few rollouts, often one a question, and the student changes from step to step. The estimate of a step is noisy and unbiased; a
weighted mean of the last steps is what can be read. Its interval covers the equally weighted mean of the true gains, not the newest one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.screening import screening_gain
from opdscope.core.screening_errors import screening_error
from opdscope.errors import ShapeError

_LEAST_OF_A_QUESTION = 3
"""Verified rollouts of every question from which on each question has a baseline of its own."""


@dataclass(frozen=True)
class StepGain:
    """One step's estimate of linear functionals of the push."""

    value: Float[np.ndarray, "feature"]
    """Success probability per unit step, summed over a response; NaN with fewer than two verified rollouts."""
    error: Float[np.ndarray, "feature"]
    """Its standard error; NaN with fewer than three."""
    num_verified: int
    """Rollouts with an outcome."""


def step_gain(
    outcomes: Float[np.ndarray, "rollout"], questions: Int[np.ndarray, "rollout"], pushes: Float[np.ndarray, "feature rollout"]
) -> StepGain:
    r"""Gains of one step's rollouts.

    Args:
        outcomes: Rewards, 1 for right and 0 for wrong; NaN is left out.
        questions: Which question each rollout answers.
        pushes: Per feature, the centred signal at the taken tokens summed over a rollout.

    Returns:
        Where every question has three verified rollouts or more, the mean over questions of
        :func:`~opdscope.core.screening.screening_gain` with an error from how questions differ; else the same formula over all rollouts
        together: the baseline of a rollout is then the mean outcome of the step's other ones, which costs variance and no bias, because a
        push has mean zero under the student on each question.

    Raises:
        ShapeError: If the arrays differ in their number of rollouts.

    Example:
        >>> step_gain(np.array([1.0, 0.0]), np.array([0, 1]), np.array([[0.5, -0.5]])).value.tolist()
        [0.5]
    """
    if not len(outcomes) == len(questions) == pushes.shape[-1]:
        raise ShapeError(f"expected one question and one push per outcome, {len(outcomes)}, found {len(questions)} and {pushes.shape[-1]}")
    known = ~np.isnan(outcomes)
    own, place = outcomes[known], questions[known]
    names, counts = np.unique(place, return_counts=True)
    if len(names) >= 2 and counts.min(initial=0) >= _LEAST_OF_A_QUESTION:
        groups = [np.flatnonzero(place == name) for name in names]
        gains = np.stack([screening_gain(own[group], pushes[:, known][:, group]) for group in groups])
        within = np.stack([screening_error(own[group], pushes[:, known][:, group]) for group in groups])
        # two or three questions say little of how questions differ; what their rollouts say is a lower bound
        error = np.maximum(np.std(gains, axis=0, ddof=1), np.sqrt(np.mean(within**2, axis=0))) / np.sqrt(len(names))
        return StepGain(gains.mean(axis=0), error, len(own))
    return StepGain(screening_gain(outcomes, pushes), screening_error(outcomes, pushes), len(own))


@dataclass(frozen=True)
class Series:
    """An exponentially weighted mean of independent estimates; :meth:`advance` returns the next state."""

    decay: float
    """What a step's weight is multiplied by at each later step, in [0, 1)."""
    weight: float = 0.0
    """Sum of weights."""
    squared_weight: float = 0.0
    """Sum of squared weights."""
    total: Float[np.ndarray, "feature"] | None = None
    """Weighted sum of estimates."""
    variance: Float[np.ndarray, "feature"] | None = None
    """Sum of squared weights times variances."""

    def advance(self, value: Float[np.ndarray, "feature"], error: Float[np.ndarray, "feature"], count: float) -> "Series":
        """The state after one more estimate, weighted by the number of samples that it rests on; one that is not finite changes nothing."""
        if not (np.isfinite(value).all() and np.isfinite(error).all()) or count <= 0:
            return self
        total = np.zeros_like(value) if self.total is None else self.total
        variance = np.zeros_like(value) if self.variance is None else self.variance
        return Series(
            self.decay,
            self.decay * self.weight + count,
            self.decay**2 * self.squared_weight + count**2,
            self.decay * total + count * value,
            self.decay**2 * variance + (count * error) ** 2,
        )

    @property
    def mean(self) -> Float[np.ndarray, "feature"]:
        """Weighted mean; an empty array before the first estimate."""
        return np.zeros(0) if self.total is None else self.total / self.weight

    @property
    def error(self) -> Float[np.ndarray, "feature"]:
        """Its standard error."""
        return np.zeros(0) if self.variance is None else np.sqrt(self.variance) / self.weight

    @property
    def num_steps(self) -> float:
        """How many equally weighted steps it is worth."""
        return self.weight**2 / self.squared_weight if self.squared_weight > 0 else 0.0


def sharpening_factor(divergence: float, squared_signal: float) -> float:
    r"""How strongly the student has to be sharpened (or flattened) to push as hard as a teacher does.

    Args:
        divergence: KL(student ‖ teacher) summed over a response, in nats.
        squared_signal: Sum over a response of :math:`(\log p_y + H)^2`, whose mean is :math:`\operatorname{Var}_p(\log p)`.

    Returns:
        The factor of the centred signal :math:`\log p_y + H`: at temperature τ it is 1/τ - 1. Zero where either is not positive.

    Notes:
        :math:`KL(p ‖ p_\tau) = \tfrac12 (1/\tau - 1)^2 \operatorname{Var}_p(\log p)` to leading order, set equal to the teacher's.

    Example:
        >>> sharpening_factor(0.5, 4.0)
        0.5
    """
    return float(np.sqrt(2.0 * divergence / squared_signal)) if divergence > 0 and squared_signal > 0 else 0.0


def combined_error(first: float, second: float, difference: float, factor: float) -> float:
    r"""Standard error of `first - factor · second`, from those of either and of their plain difference.

    Notes:
        :math:`\operatorname{Cov} = (v_1 + v_2 - v_{1-2}) / 2`, and :math:`v_1 - 2 c \operatorname{Cov} + c^2 v_2`, at least zero.

    Example:
        >>> combined_error(3.0, 4.0, 5.0, 1.0)
        5.0
    """
    covariance = 0.5 * (first**2 + second**2 - difference**2)
    return float(np.sqrt(max(first**2 - 2.0 * factor * covariance + factor**2 * second**2, 0.0)))
