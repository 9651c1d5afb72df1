r"""Further nodes on measured paths: what they would take from the variance of a sum over a path, and how they are drawn without bias.

A first draw takes nodes at ticks :math:`u, u + 1, \dots` of the cumulated inclusion probabilities, u uniform in [0, 1). Further draws take the
ticks between: of d draws the k-th begins at :math:`(u + k / d) \bmod 1`. Whatever d is, as long as nothing that depends on u or on the
question's outcomes decides it, each of these starts is uniform, so that each draw alone has the inclusion probabilities π and its sum
:math:`\sum_{t \in s_k} x_t / \pi_t` the mean :math:`\sum_t x_t`. So has their mean, however the draws depend on one another:

.. math:: \frac1d \sum_k \sum_{t \in s_k} \frac{x_t}{\pi_t} = \sum_t \frac{m_t}{d\,\pi_t} x_t,

with :math:`m_t` the number of draws that hold t. A node that is drawn twice is measured once, and counts as one whose inclusion probability is
:math:`d\,\pi_t / m_t`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.sampling import systematic_sample


def refined_sample(
    inclusion: Float[np.ndarray, "position"], start: float, draws: int
) -> tuple[Int[np.ndarray, "node"], Float[np.ndarray, "node"]]:
    r"""Positions of several interleaved draws, each of which alone has these inclusion probabilities.

    Args:
        inclusion: Inclusion probabilities of one draw, with an integral sum.
        start: A uniform number in [0, 1); with it :func:`opdscope.core.sampling.systematic_sample` gives the first draw.
        draws: How many, at least one.

    Returns:
        Sorted positions, each once, and what to divide by in a sum over them in place of the inclusion probability: :math:`d\,\pi / m`.

    References:
        Wolter (2007), Introduction to Variance Estimation, section 8.2, for systematic samples with several starts.

    Example:
        >>> positions, divisors = refined_sample(np.array([0.5, 0.5, 0.5, 0.5]), 0.2, 2)
        >>> positions.tolist(), divisors.tolist()
        ([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    """
    each = [systematic_sample(inclusion, (start + k / draws) % 1.0) for k in range(draws)]
    positions, times = np.unique(np.concatenate(each), return_counts=True)
    return positions, draws * inclusion[positions] / times


def drawing_variance(terms: Float[np.ndarray, "node"], noise: Float[np.ndarray, "node"], certain: Bool[np.ndarray, "node"]) -> float:
    r"""Variance of a sum over a path that comes from which nodes were drawn, estimated from one systematic draw.

    Args:
        terms: What each node adds to the sum, :math:`y = x / \pi`, as estimated; in order of position.
        noise: Variance of each term given the node, which is not to be counted here.
        certain: Nodes with inclusion probability one: they are in every draw.

    Returns:
        :math:`\frac{n}{2 (n - 1)} \sum_i (y_i - y_{i-1})^2 - \sum_i \text{noise}_i` over the n nodes that are not certain; may be negative. Zero
        with fewer than two of them.

    References:
        Wolter (2007), section 8.2, estimator v2: successive differences, which a trend along the path does not inflate.

    Example:
        >>> drawing_variance(np.array([1.0, 3.0, 1.0]), np.full(3, 0.5), np.zeros(3, dtype=bool))
        4.5
    """
    own, count = terms[~certain], int(np.sum(~certain))
    if count < 2:
        return 0.0
    return count / (2.0 * (count - 1)) * float(np.sum(np.diff(own) ** 2)) - float(np.sum(noise[~certain]))


def best_draws(between: float, noise: Sequence[float]) -> int:
    r"""How often nodes should be drawn for the least variance of a sum, with a budget that all draws share.

    Args:
        between: Variance that comes from drawing once.
        noise: For 1, 2, … draws: variance from continuations that one draw alone would have with its part of the budget; infinite where that
            does not pay for its pilot.

    Returns:
        The d with the least :math:`(\text{between}^+ + \text{noise}_d) / d`; the fewest draws if several are best.

    Notes:
        Of d draws the mean is taken. Their nodes are interleaved and so at least as good as independent ones: no less than a share 1/d of
        `between` is foretold to remain.

    Example:
        >>> best_draws(1.0, [0.1, 0.3, 0.7, np.inf]), best_draws(0.0, [0.1, 0.3, 0.7, np.inf])
        (3, 1)
    """
    remaining = [(max(between, 0.0) + own) / (k + 1) for k, own in enumerate(noise)]
    return int(np.argmin(remaining)) + 1
