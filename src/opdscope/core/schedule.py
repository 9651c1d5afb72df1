r"""How strongly to distil as training goes on: driven by what the run shows of itself, never by a clock.

Distillation is worth as much as its gain, and its gain goes to zero with the student's room to improve: a gain is a covariance with the outcome and
cannot exceed :math:`\sqrt{\rho (1 - \rho)}` times the size of the push. The push itself does not go away: a teacher goes on pulling the student
to its own habits after there is nothing left to learn from it.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Parameters of the weight, fitted from a diagnosis."""

    start_success: float
    """Success rate of the student at the diagnosis, in [0, 1)."""
    start_gain: float
    """Gain over null at the diagnosis, per unit step and summed over a response; positive."""
    ceiling: float = 1.0
    """Success rate at which there is nothing left to learn, above `start_success`."""
    maximum: float = 1.0
    """Weight at the diagnosis, and the largest one."""
    minimum: float = 0.0
    """Weight never falls below this, except to 0 where the teacher harms."""

    def __post_init__(self) -> None:
        if not 0 <= self.start_success < self.ceiling <= 1:
            raise ValueError(
                f"schedule: expected 0 <= start_success < ceiling <= 1, found start_success {self.start_success:g} and ceiling {self.ceiling:g}"
            )
        if not (math.isfinite(self.start_gain) and self.start_gain > 0):
            raise ValueError(
                f"schedule: start_gain must be positive, found {self.start_gain:g}; a teacher without a gain needs no schedule"
            )
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"schedule: expected 0 <= minimum <= maximum, found minimum {self.minimum:g} and maximum {self.maximum:g}")


def distillation_weight(schedule: Schedule, success: float, gain: float, gain_high: float = math.inf) -> float:
    r"""Weight of the distillation loss, from the live success rate and the live gain over null.

    Args:
        schedule: What was fitted from the diagnosis.
        success: Success rate of the student now, smoothed; NaN (no verdict yet) leaves out its factor.
        gain: Gain over null now, smoothed, in the unit of the diagnosis; NaN leaves out its factor.
        gain_high: Upper end of its interval, if there is one.

    Returns:
        A weight in [0, maximum]. 0 where `gain_high` is below zero: then the teacher is shown to do no better than its null.

    Notes:
        :math:`w = w_{\max} \cdot \operatorname{clip}(g / g_0, 0, 1) \cdot \operatorname{clip}\bigl(\frac{c - \rho}{c - \rho_0}, 0, 1\bigr)`, not
        below `minimum`. The first factor is how much of what the teacher was chosen for is still there, the second how much room is left. Each is
        1 at the diagnosis; a gain or a failure rate above the first one buys no weight above the maximum, so that a lucky estimate cannot
        turn the push up.

    Example:
        >>> schedule = Schedule(start_success=0.5, start_gain=0.4)
        >>> [distillation_weight(schedule, *now) for now in [(0.5, 0.4), (0.75, 0.4), (0.75, 0.2), (1.0, 0.4)]]
        [1.0, 0.5, 0.25, 0.0]
        >>> distillation_weight(schedule, 0.6, -0.1, gain_high=-0.02)
        0.0
    """
    if gain_high < 0:
        return 0.0
    left = _share(gain, schedule.start_gain)
    room = _share(schedule.ceiling - success, schedule.ceiling - schedule.start_success)
    return max(schedule.minimum, schedule.maximum * left * room)


def _share(now: float, at_start: float) -> float:
    return 1.0 if math.isnan(now) else min(max(now / at_start, 0.0), 1.0)
