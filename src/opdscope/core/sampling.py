"""What is measured next: which nodes with which inclusion probability, which candidates, how many continuations of each stratum."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.errors import ShapeError


def node_importance(
    collision: Float[np.ndarray, "position"], reverse_kl: Float[np.ndarray, "teacher position"]
) -> Float[np.ndarray, "position"]:
    r"""How much a position can contribute to a gain: the student's freedom times the teachers' push.

    Args:
        collision: Sum of squared student probabilities at each position.
        reverse_kl: KL(student ‖ teacher) of each real teacher at each position, in nats.

    Returns:
        Non-negative weights without a unit. Zero only where the student is certain or every teacher agrees with it; there every gain is
        zero.

    Notes:
        :math:`|\operatorname{Cov}_p(S, f)| \le \operatorname{sd}_p(S)\operatorname{sd}_p(f)`:
        :math:`\operatorname{sd}_p(S) \le \sqrt{(1 - \sum p^2) / 2}`, and :math:`\operatorname{sd}_p(f) \approx \sqrt{2\,KL}` for small
        divergences. Each teacher is scaled to mean one, so that a teacher far away does not choose the nodes for all.
    """
    push = np.sqrt(np.maximum(reverse_kl, 0.0))
    mean = np.mean(push, axis=-1, keepdims=True)
    scaled = push / np.where(mean > 0, mean, 1.0)
    return np.sqrt(np.maximum(1.0 - collision, 0.0)) * np.mean(scaled, axis=0)


def variance_importance(
    reverse_kl: Float[np.ndarray, "teacher position"], settled: Float[np.ndarray, "position"], continuations: float
) -> Float[np.ndarray, "position"]:
    r"""How much a position is expected to add to the variance of a sum of gains if nodes are drawn: by what its gain may be, and by its noise.

    Args:
        reverse_kl: KL(student ‖ teacher) of each real teacher at each position, in nats.
        settled: Share of the outcome's variance that is settled at each position (:mod:`opdscope.core.early_range`).
        continuations: How many a node gets.

    Returns:
        Non-negative weights without a unit.

    Notes:
        A node drawn with probability π adds :math:`(g^2 + \sigma^2) / \pi` to the second moment of a Horvitz-Thompson sum. The gain is at most
        :math:`\operatorname{sd}_p(S) \operatorname{sd}_p(f)`, with :math:`\operatorname{Var}_p(S) = \rho_t \operatorname{Var}(R)`; n continuations
        leave noise of about :math:`\operatorname{Var}_p(f) \operatorname{Var}(R) / n`; and :math:`\operatorname{Var}_p(f) \approx 2 KL`. So the best
        π are proportional to :math:`\sqrt{\sum_k \frac{KL_{kt}}{E_s KL_{ks}} \Big(\rho_t + \frac1n\Big)}`, each teacher in units of its own push.

    References:
        Särndal, Swensson and Wretman (1992), Model Assisted Survey Sampling, section 12.2: inclusion in proportion to expected size.

    Example:
        >>> variance_importance(np.array([[1.0, 1.0]]), np.array([0.99, 0.0]), 100).round(6).tolist()
        [1.0, 0.1]
    """
    reverse_kl = np.maximum(reverse_kl, 0.0)  # rounding may leave it below zero
    mean = np.mean(reverse_kl, axis=-1, keepdims=True)
    push = np.mean(reverse_kl / np.where(mean > 0, mean, 1.0), axis=0)
    return np.sqrt(push * (settled + 1.0 / continuations))


def importance_per_cost(importance: Float[np.ndarray, "position"], cost: Float[np.ndarray, "position"]) -> Float[np.ndarray, "position"]:
    r"""Weights of inclusion for the least variance over cost where nodes are not equally dear.

    Args:
        importance: Weights for nodes that are.
        cost: Tokens of a continuation from each position, positive: a late node has a shorter one.

    Returns:
        :math:`\text{importance} / \sqrt{\text{cost}}`, with which :math:`\sum_t \text{importance}_t^2 / \pi_t` is smallest for given
        :math:`\sum_t \pi_t \text{cost}_t`.

    References:
        Cochran (1977), Sampling Techniques, section 5.5, for unequal costs.

    Example:
        >>> importance_per_cost(np.array([1.0, 1.0]), np.array([1.0, 4.0])).tolist()
        [1.0, 0.5]
    """
    return importance / np.sqrt(cost)


def inclusion_probabilities(
    importance: Float[np.ndarray, "position"], num_nodes: int, uniform_share: float
) -> Float[np.ndarray, "position"]:
    r"""Chance of each position to become a node, known before any continuation is drawn.

    Args:
        importance: Non-negative weights.
        num_nodes: Expected number of nodes; all positions are taken if there are no more than that.
        uniform_share: Part of the probability that is spread evenly, in (0, 1]; it bounds every weight 1/π.

    Returns:
        Probabilities in (0, 1] that sum to `min(num_nodes, len(importance))`.

    Notes:
        Proportional to a mixture of importance and uniform; what exceeds 1 is set to 1 and the rest rescaled, until nothing exceeds.

    Example:
        >>> inclusion_probabilities(np.array([1.0, 1.0, 2.0]), 2, 1.0).round(3).tolist()
        [0.667, 0.667, 0.667]
    """
    size = len(importance)
    if num_nodes >= size:
        return np.ones(size)
    total = float(np.sum(importance))
    even = np.full(size, 1.0 / size)
    weights = even if total <= 0 else uniform_share * even + (1.0 - uniform_share) * importance / total
    result = np.zeros(size)
    certain = np.zeros(size, dtype=bool)
    while True:
        free = num_nodes - int(certain.sum())
        result = np.where(certain, 1.0, free * weights / np.sum(weights[~certain]))
        exceeding = (result > 1.0) & ~certain
        if not exceeding.any():
            return result
        certain |= exceeding


def systematic_sample(inclusion: Float[np.ndarray, "position"], start: float) -> Int[np.ndarray, "node"]:
    """Positions drawn with exactly these inclusion probabilities, spread along the response, and always equally many.

    Args:
        inclusion: Inclusion probabilities with an integral sum.
        start: A uniform number in [0, 1).

    Returns:
        Sorted positions, `round(sum(inclusion))` of them.

    References:
        Madow (1949), systematic sampling with unequal probabilities.

    Example:
        >>> systematic_sample(np.array([0.5, 0.5, 0.5, 0.5]), 0.2).tolist()
        [0, 2]
    """
    upper = np.cumsum(inclusion)
    ticks = start + np.arange(round(float(upper[-1])))
    # the last position has no upper end, so that rounding, here or in the sum, neither loses the last node nor leads past the end
    return np.searchsorted(upper[:-1], ticks, side="right")


@dataclass(frozen=True)
class Candidates:
    """Tokens measured one by one at a node."""

    token_ids: Int[np.ndarray, "candidate"]
    """By falling share in the mixture of student and teachers."""
    share: Float[np.ndarray, "candidate"]
    """Probability in the mixture, half the student, half the teachers' mean."""


def choose_candidates(
    student_probs: Float[np.ndarray, "vocab"], teacher_probs: Float[np.ndarray, "teacher vocab"], max_candidates: int, min_prob: float
) -> Candidates:
    """The tokens that matter at a node, chosen before any outcome is seen.

    A token a teacher wants is taken even where the student rarely takes it; all others make up the tail stratum, which is sampled from the
    student.

    Args:
        student_probs: The student at the node.
        teacher_probs: The real teachers at the node; may be empty.
        max_candidates: Most tokens.
        min_prob: A token qualifies if the student or some teacher gives it at least this probability.

    Returns:
        At least one candidate: the likeliest if none qualifies.
    """
    mixture = student_probs if len(teacher_probs) == 0 else 0.5 * student_probs + 0.5 * np.mean(teacher_probs, axis=0)
    highest = student_probs if len(teacher_probs) == 0 else np.maximum(student_probs, np.max(teacher_probs, axis=0))
    eligible = np.flatnonzero(highest >= min_prob)
    if len(eligible) == 0:
        eligible = np.array([int(np.argmax(mixture))])
    order = eligible[np.lexsort((eligible, -mixture[eligible]))][:max_candidates]
    return Candidates(order.astype(np.int64), mixture[order].astype(np.float64))


def allocate_continuations(
    weights: Float[np.ndarray, "stratum"], budget: int, minimum: int, sampled: np.ndarray
) -> Int[np.ndarray, "stratum"]:
    r"""How many continuations each stratum gets: Neyman's rule with the outcome's spread not yet known.

    Args:
        weights: How much a stratum's success matters, for example its share in the mixture of student and teachers.
        budget: Continuations for the node.
        minimum: Least number for a stratum that is sampled.
        sampled: Boolean; strata that need no continuation (their token ends the response, or the tail is negligible) are False.

    Returns:
        Counts; they sum to `max(budget, minimum × strata sampled)`, or to zero if no stratum is sampled. Equal if no weight is positive.

    Raises:
        ShapeError: If `weights` and `sampled` differ in shape.

    Notes:
        :math:`n_j \propto w_j \operatorname{sd}_j` with all :math:`\operatorname{sd}_j` equal; largest remainders round.

    References:
        Neyman (1934), stratified sampling.

    Example:
        >>> allocate_continuations(np.array([0.7, 0.2, 0.1]), 20, 3, np.array([True, True, True])).tolist()
        [13, 4, 3]
    """
    if weights.shape != sampled.shape:
        raise ShapeError(f"expected one flag per stratum, {weights.shape}, found {sampled.shape}")
    counts = np.where(sampled, minimum, 0)
    spare = budget - int(counts.sum())
    if spare <= 0 or not sampled.any():
        return counts
    share = np.where(sampled, weights if np.any(weights[sampled] > 0) else np.ones_like(weights), 0.0)
    target = np.maximum(budget * share / share.sum() - counts, 0.0)
    extra = spare * target / target.sum()
    floor = np.floor(extra + 1e-9).astype(int)
    rest = spare - int(floor.sum())
    order = np.lexsort((np.arange(len(extra)), -(extra - floor)))
    floor[order[:rest]] += 1
    return counts + floor
