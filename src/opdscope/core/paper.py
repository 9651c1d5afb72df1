r"""The source paper's protocol (arXiv 2605.10889) as pure functions: depth windows, choice of tokens, cosine on the kept children, filters.

These repeat a published procedure, biases included, so that its numbers can be set beside sound ones; METHOD section 8 lists the biases.
Nothing here is used by the default protocol.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.gradients import ideal_gradient, pullback
from opdscope.errors import ShapeError

_LEAST_PUSH = 1e-5
"""Signals, in nats, that differ by less are rounding of a float32 softmax and have no direction."""

_LEAST_RANGE = 1e-9
"""Shares of successes that differ by less are equal: no number of visits that can be counted gives a smaller difference."""


def depth_windows(num_positions: int, first_window: int) -> Int[np.ndarray, "position"]:
    """Which depth window each position lies in; each window is twice as wide as the one before.

    Args:
        num_positions: Length of a response in tokens.
        first_window: Width of the first window; 50 gives the paper's 1–50, 51–150, 151–350, … (positions counted from 1).

    Returns:
        Window of each position, counted from 0.

    Example:
        >>> depth_windows(10, 2).tolist()
        [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    """
    # the window of t is the exponent of the power of two in t // first_window + 1, which frexp gives without rounding
    return np.frexp(np.arange(num_positions) // first_window + 1)[1].astype(np.int64) - 1


def choose_pairs(
    window: Int[np.ndarray, "pair"],
    gradient: Float[np.ndarray, "pair"],
    difference: Float[np.ndarray, "pair"],
    top_gradient: int,
    top_difference: int,
) -> Bool[np.ndarray, "pair"]:
    """The (position, token) pairs of one path that a teacher gets enriched: in each window the largest by either size.

    Args:
        window: Depth window of each pair.
        gradient: The token's reverse-KL gradient at the position.
        difference: The teacher's probability minus the student's.
        top_gradient: How many pairs of each window are chosen by the size of the gradient.
        top_difference: How many by the size of the difference; a pair chosen twice counts once.

    Returns:
        True for the chosen pairs. Sizes are compared to five decimals, ties go to the earlier pair: where two tokens share all probability
        their gradients are equally large, and rounding must not decide between them. A size of zero is never chosen.

    Raises:
        ShapeError: If the arrays differ in shape.

    Example:
        >>> choose_pairs(np.array([0, 0, 1]), np.array([0.1, -0.2, 0.01]), np.array([0.3, 0.1, 0.0]), 1, 1).tolist()
        [True, True, True]
    """
    if not window.shape == gradient.shape == difference.shape:
        raise ShapeError(f"expected arrays of one shape, found {window.shape}, {gradient.shape}, {difference.shape}")
    chosen = np.zeros(len(window), dtype=bool)
    for size, count in ((np.abs(gradient), top_gradient), (np.abs(difference), top_difference)):
        rounded = np.round(size, 5)
        for index in np.unique(window):
            members = np.flatnonzero((window == index) & (rounded > 0))
            chosen[members[np.argsort(-rounded[members], kind="stable")[:count]]] = True
    return chosen


@dataclass(frozen=True)
class KeptChildren:
    """What the paper computes at each node, on its kept children alone; every field broadcasts over nodes."""

    cosine: Float[np.ndarray, "*batch"]
    """Cosine of ideal and reverse-KL gradient, in [-1, 1]; NaN with too few kept children, no success range, or no push."""
    success_range: Float[np.ndarray, "*batch"]
    """Largest minus smallest success; NaN with too few kept children."""
    advantage: Float[np.ndarray, "*batch"]
    """Teacher advantage, both distributions renormalised over the kept children; NaN with too few, or where either has no mass on them."""
    num_children: Int[np.ndarray, "*batch"]
    """Kept children."""


def kept_children(
    student_probs: Float[np.ndarray, "*batch child"],
    teacher_probs: Float[np.ndarray, "*batch child"],
    success: Float[np.ndarray, "*batch child"],
    kept: Bool[np.ndarray, "*batch child"],
    min_children: int = 2,
) -> KeptChildren:
    r"""The paper's numbers at many nodes at once.

    Args:
        student_probs: Student probability of each child; need not sum to one.
        teacher_probs: Teacher probability of each child; need not sum to one.
        success: Observed success of each child, in [0, 1]; anything, NaN included, where a child is not kept.
        kept: True for children with enough visits. Padding is False.
        min_children: Fewer kept children leave a node without numbers.

    Returns:
        Cosine, success range and advantage per node.

    Raises:
        ShapeError: If the arrays differ in shape.

    Notes:
        With :math:`\tilde p` the student renormalised over the kept children: :math:`g^*_j = \tilde p_j (\hat S_j - \sum \tilde p \hat S)`,
        :math:`d_j = \tilde p_j (f_j - \sum \tilde p f)`, :math:`f = \log q - \log p`, and
        :math:`\sum (\tilde q - \tilde p) \hat S` for the advantage. Both gradients sum to zero, so two kept children give ±1 whatever the
        sizes: the mean over such nodes is a count of signs.

    References:
        arXiv 2605.10889, alignment score.

    Example:
        >>> p, q, s = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1]), np.array([0.8, 0.5, 0.2])
        >>> three = kept_children(p, q, s, np.array([True, True, True]))
        >>> two = kept_children(p, q, s, np.array([True, True, False]))
        >>> round(float(three.cosine), 3), float(two.cosine)
        (0.939, 1.0)
    """
    if not student_probs.shape == teacher_probs.shape == success.shape == kept.shape:
        shapes = f"{student_probs.shape}, {teacher_probs.shape}, {success.shape}, {kept.shape}"
        raise ShapeError(f"expected arrays of one shape, found {shapes}")
    num_children = np.sum(kept, axis=-1)
    enough = num_children >= min_children
    own, theirs = _renormalised(student_probs, kept), _renormalised(teacher_probs, kept)
    values = np.where(kept, success, 0.0)
    span = np.where(enough, _span(values, kept), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        signal = np.where(kept & (student_probs > 0), np.log(teacher_probs) - np.log(student_probs), 0.0)
        pushed = _span(signal, kept & (student_probs > 0)) > _LEAST_PUSH
        cosine = _cosine(ideal_gradient(own, values), pullback(own, signal))
    defined = enough & (span > _LEAST_RANGE) & pushed
    return KeptChildren(
        np.where(defined, cosine, np.nan), span, np.where(enough, np.sum((theirs - own) * values, axis=-1), np.nan), num_children
    )


def filter_positive(scores: Float[np.ndarray, "*batch"], selector: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    """Scores of the nodes that a selector finds well aligned, NaN elsewhere.

    Args:
        scores: What the filter is judged by, per node; NaN is undefined.
        selector: What it selects by: nodes where this is positive.

    Returns:
        The paper's oracle filter if both are the same cosines: its mean is large even if there is nothing but noise. With scores and selector
        from disjoint halves of the continuations, the honest filter, whose mean is zero where there is nothing to find.

    Example:
        >>> filter_positive(np.array([0.5, -0.5, 1.0]), np.array([1.0, 1.0, -1.0])).tolist()
        [0.5, -0.5, nan]
    """
    return np.where(selector > 0, scores, np.nan)


def question_means(
    values: Float[np.ndarray, "node"],
    path: Int[np.ndarray, "node"],
    question: Int[np.ndarray, "path"],
    num_questions: int,
    weights: Float[np.ndarray, "node"] | None = None,
) -> Float[np.ndarray, "question"]:
    """The paper's order of averaging: nodes of a path, then paths of a question.

    Args:
        values: A number per node; NaN is undefined and not counted.
        path: Index of each node's path.
        question: Index of each path's question.
        num_questions: Length of the result.
        weights: Non-negative weights of nodes within their path, for example their success ranges; equal if None.

    Returns:
        One number per question, each path of it with equal weight; NaN for a question without any. The mean over questions is left to
        :func:`opdscope.core.aggregation.clustered_mean`.

    Raises:
        ShapeError: If `values`, `path` and `weights` differ in length.

    Example:
        >>> question_means(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([0, 0]), 2).tolist()
        [0.75, nan]
    """
    weight = np.ones_like(values) if weights is None else weights
    if not values.shape == path.shape == weight.shape:
        raise ShapeError(f"expected one value, path and weight a node, found {values.shape}, {path.shape}, {weight.shape}")
    defined = ~np.isnan(values)
    by_path = _grouped_mean(values[defined], weight[defined], path[defined], len(question))
    paths = ~np.isnan(by_path)
    return _grouped_mean(by_path[paths], np.ones(int(paths.sum())), question[paths], num_questions)


def _grouped_mean(
    values: Float[np.ndarray, "item"], weights: Float[np.ndarray, "item"], group: Int[np.ndarray, "item"], count: int
) -> Float[np.ndarray, "group"]:
    total = np.bincount(group, weights=weights * values, minlength=count)
    mass = np.bincount(group, weights=weights, minlength=count)
    return np.where(mass > 0, total / np.where(mass > 0, mass, 1.0), np.nan)


def _renormalised(probs: Float[np.ndarray, "*batch child"], kept: Bool[np.ndarray, "*batch child"]) -> Float[np.ndarray, "*batch child"]:
    inside = np.where(kept, probs, 0.0)
    mass = np.sum(inside, axis=-1, keepdims=True)
    return np.where(mass > 0, inside / np.where(mass > 0, mass, 1.0), np.nan)


def _span(values: Float[np.ndarray, "*batch child"], where: Bool[np.ndarray, "*batch child"]) -> Float[np.ndarray, "*batch"]:
    low = np.min(np.where(where, values, np.inf), axis=-1, initial=np.inf)
    return np.max(np.where(where, values, -np.inf), axis=-1, initial=-np.inf) - low


def _cosine(first: Float[np.ndarray, "*batch child"], second: Float[np.ndarray, "*batch child"]) -> Float[np.ndarray, "*batch"]:
    # each is scaled by its largest entry first: a child of probability 1e-160 must not underflow the squares
    first = first / np.max(np.abs(first), axis=-1, keepdims=True, initial=0.0)
    second = second / np.max(np.abs(second), axis=-1, keepdims=True, initial=0.0)
    product = np.sum(first * second, axis=-1)
    return np.clip(product / np.sqrt(np.sum(first**2, axis=-1) * np.sum(second**2, axis=-1)), -1.0, 1.0)
