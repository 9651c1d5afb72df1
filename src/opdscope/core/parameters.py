r"""Ideal and distillation gradient in the student's own parameters: what one step on the weights does, tokens that share weights included.

At a node both gradients are directions on the logits. A training step moves parameters, and the network carries a direction on the logits of one
node to the logits of all others. With :math:`J_u` the Jacobian of the logits at node u,

.. math:: \nabla_\theta V = E \sum_u J_u^\top g^*_u, \qquad \delta = E \sum_u J_u^\top d_u,

and :math:`\langle \nabla_\theta V, \delta \rangle` is the exact rate at which the success rate rises along the objective's own gradient step. The sum
of per-node products leaves out what nodes do to one another.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from opdscope.core.aggregation import Estimate, clustered_mean, pooled_cosine
from opdscope.errors import ShapeError

LEAST_GROUPS = 4
"""Groups of questions without which nothing is said: products are taken between groups, and each is left out once."""


@dataclass(frozen=True)
class ParameterAlignment:
    """One (teacher, objective) in the parameters of the student."""

    gain: Estimate
    """Rise of the success rate per unit step along the objective's gradient, summed over a response; nats × success per squared parameter."""
    alignment: Estimate
    """Cosine of the two gradients, in [-1, 1], noise taken off both lengths; NaN where noise is all there is."""


def parameter_alignment(
    ideal: Float[np.ndarray, "group coordinate"], push: Float[np.ndarray, "group coordinate"], confidence: float, error: float = 0.0
) -> ParameterAlignment:
    r"""Gain and alignment in parameters, from the gradients of disjoint groups of questions.

    Args:
        ideal: Estimated ideal gradient of each group of questions, in units in which the mean over groups is that over questions.
        push: The objective's gradient of each group, likewise; ascent on the negative loss.
        confidence: Level of the intervals, in (0, 1).
        error: Standard error of a cosine that comes from projecting parameters to fewer coordinates; widens the alignment's interval.

    Returns:
        Both with intervals clustered by group; NaN throughout with fewer than :data:`LEAST_GROUPS` groups.

    Raises:
        ShapeError: If the arrays differ in shape.

    Notes:
        Gradients of one group share rollouts, and the square of noise has no mean zero. So all products are taken between different groups,

        .. math:: U_{xy} = \frac{1}{G (G - 1)} \sum_{a \ne b} \langle x_a, y_b \rangle,

        which are unbiased for the inner products of the expected gradients, lengths included. Each group counts by the jackknife's
        pseudo-value :math:`G U - (G - 1) U_{(a)}`, whose mean is U; :func:`opdscope.core.aggregation.pooled_cosine` makes the interval of the ratio.

    References:
        Hoeffding (1948), A class of statistics with asymptotically normal distribution; Arvesen (1969), Jackknifing U-statistics.

    Example:
        >>> direction = np.array([3.0, 4.0]) + np.array([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
        >>> found = parameter_alignment(direction, 2.0 * direction, 0.9)
        >>> round(found.gain.value, 2), round(found.alignment.value, 3)
        (49.99, 1.0)
    """
    if ideal.shape != push.shape:
        raise ShapeError(f"expected gradients of the same groups and coordinates, found shapes {ideal.shape} and {push.shape}")
    if len(ideal) < LEAST_GROUPS:
        unknown = Estimate(np.nan, np.nan, np.nan, np.nan, len(ideal), confidence)
        return ParameterAlignment(unknown, unknown)
    values = np.stack([_pseudo_values(x, y) for x, y in ((ideal, push), (ideal, ideal), (push, push))], axis=1)
    cosine = pooled_cosine(values, confidence)
    reach = 2.0 * error
    return ParameterAlignment(
        clustered_mean(values[:, 0], confidence), replace(cosine, low=max(cosine.low - reach, -1.0), high=min(cosine.high + reach, 1.0))
    )


def _pseudo_values(one: Float[np.ndarray, "group coordinate"], other: Float[np.ndarray, "group coordinate"]) -> Float[np.ndarray, "group"]:
    """Of the mean product between different groups: what each group adds to it, so that their mean is it."""
    products = one @ other.T
    count, own = len(products), np.diag(products)
    between = products.sum() - own.sum()
    without = between - products.sum(axis=0) - products.sum(axis=1) + 2.0 * own
    return between / (count - 1) - without / (count - 2)
