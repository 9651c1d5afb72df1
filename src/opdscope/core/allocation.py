r"""Where the next continuation goes: the one that lowers the variance of what was asked for most, per generated token.

Everything here is about estimates that are linear in the strata's successes, :math:`\sum_j c_j \hat S_j`, whose variance is
:math:`\sum_j c_j^2 v_j / n_j` with :math:`v_j = S_j (1 - S_j)`. All arrays are flat, one entry per stratum of all nodes together: memory is linear in
their number.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from opdscope.errors import ShapeError

_BISECTIONS = 100
"""Halvings of a threshold's logarithm: they end at neighbouring floats."""

_STEPS = 10
"""Of the multipliers of several teachers; thirty more save half a per cent of the tokens of a map of six teachers."""


def target_weights(
    student_probs: Float[np.ndarray, "node stratum"],
    signals: Float[np.ndarray, "teacher node stratum"],
    scales: Float[np.ndarray, "teacher #node"],
) -> Float[np.ndarray, "node stratum"]:
    r"""How much each stratum's success moves the natural gains of several teachers, as one weight.

    Args:
        student_probs: Student probability of each stratum, summing to one; zero for padding.
        signals: Signal of each teacher per stratum.
        scales: What each teacher's gain is divided by, so that none counts for more because it pushes harder; zero where it does not push.

    Returns:
        :math:`w_j = \sqrt{\frac{1}{T} \sum_t (c_{tj} / \text{scale}_t)^2}` with :math:`c_{tj} = p_j (f_{tj} - \bar f_t)`: the mean variance over
        teachers is :math:`\sum_j w_j^2 v_j / n_j`.

    Example:
        >>> target_weights(np.array([[0.5, 0.5]]), np.array([[[1.0, -1.0]], [[2.0, -2.0]]]), np.array([[1.0], [2.0]])).tolist()
        [[0.5, 0.5]]
    """
    squares = np.zeros(student_probs.shape)
    for signal, scale in zip(signals, scales, strict=True):  # one teacher at a time, for memory
        centred = student_probs * (signal - np.sum(student_probs * signal, axis=-1, keepdims=True))
        divisor = np.broadcast_to(scale, student_probs.shape[:1])[:, None]
        squares += np.where(divisor > 0, centred / np.where(divisor > 0, divisor, 1.0), 0.0) ** 2
    return np.sqrt(squares / max(len(signals), 1))


def marginal_reduction(
    weights: Float[np.ndarray, "*batch"],
    variance: Float[np.ndarray, "*batch"],
    counts: Int[np.ndarray, "*batch"],
    cost: Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch"]:
    r"""Expected fall of the target's variance per token by one more continuation of each stratum.

    Args:
        weights: The target's coefficient of each stratum's success.
        variance: Variance of one outcome of the stratum, :math:`S (1 - S)` as far as it is known.
        counts: Continuations that it has.
        cost: Tokens of one continuation, positive.

    Returns:
        :math:`w^2 v \left(\frac1n - \frac1{n+1}\right) / \text{cost}`; infinite for a stratum that matters and has none.

    Example:
        >>> marginal_reduction(np.array([1.0, 1.0]), np.array([0.25, 0.25]), np.array([4, 0]), np.array([10.0, 10.0])).tolist()
        [0.00125, inf]
    """
    return _marginal(weights**2 * variance / cost, counts)


def _marginal(size: Float[np.ndarray, "*batch"], counts: Int[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    steps = counts * (counts + 1.0)
    return np.where(counts > 0, size / np.maximum(steps, 1.0), np.where(size > 0, np.inf, 0.0))


def neyman_counts(
    weights: Float[np.ndarray, "stratum"], variance: Float[np.ndarray, "stratum"], cost: Float[np.ndarray, "stratum"], budget: float
) -> Float[np.ndarray, "stratum"]:
    r"""The allocation, in real numbers, that makes the target's variance smallest for a number of tokens.

    Args:
        weights: The target's coefficient of each stratum's success.
        variance: Variance of one outcome of the stratum.
        cost: Tokens of one continuation, positive.
        budget: Tokens in all.

    Returns:
        :math:`n_j \propto |w_j| \sqrt{v_j / \text{cost}_j}`, such that :math:`\sum n_j \text{cost}_j` is the budget; zeros if no stratum matters.

    References:
        Neyman (1934), stratified sampling; Cochran (1977), Sampling Techniques, section 5.5 for unequal costs.

    Example:
        >>> neyman_counts(np.array([0.6, 0.2]), np.array([0.25, 0.25]), np.array([10.0, 10.0]), 400.0).round(6).tolist()
        [30.0, 10.0]
    """
    share = np.abs(weights) * np.sqrt(variance / cost)
    total = float(np.sum(share * cost))
    return share * (budget / total) if total > 0 else np.zeros_like(share)


def allocate_tokens(
    weights: Float[np.ndarray, "stratum"],
    variance: Float[np.ndarray, "stratum"],
    counts: Int[np.ndarray, "stratum"],
    cost: Float[np.ndarray, "stratum"],
    budget: float,
) -> Int[np.ndarray, "stratum"]:
    r"""Continuations to add, as if each in turn went where it lowers the target's variance most per token.

    Args:
        weights: The target's coefficient of each stratum's success; zero for one that is not to be sampled.
        variance: Variance of one outcome of the stratum.
        counts: Continuations that it has.
        cost: Tokens of one continuation, positive.
        budget: Tokens to spend; the last continuation that does not fit any more is not drawn, nor is any that teaches less.

    Returns:
        Counts to add; ties go to the stratum that comes first.

    Raises:
        ShapeError: If the arrays differ in shape.
        ValueError: If a cost is not positive.

    Notes:
        A stratum's marginal reductions fall as it is sampled, so the greedy choice is every step whose reduction exceeds some threshold. The
        threshold is found by bisection: at λ a stratum has the n with :math:`n (n - 1) \le w^2 v / (\lambda\,\text{cost})`. What is left of
        the budget goes to the next steps in order. Time is linear in the strata, whatever the budget.

    Example:
        >>> allocate_tokens(np.array([0.6, 0.2]), np.array([0.25, 0.25]), np.array([1, 1]), np.array([10.0, 10.0]), 100.0).tolist()
        [8, 2]
    """
    if not weights.shape == variance.shape == counts.shape == cost.shape:
        raise ShapeError(f"expected arrays of one shape, found {weights.shape}, {variance.shape}, {counts.shape}, {cost.shape}")
    if np.any(cost <= 0):
        raise ValueError(f"a continuation costs a positive number of tokens; the smallest cost found is {float(np.min(cost)):g}")
    size = weights**2 * variance / cost
    if budget <= 0 or not np.any(size > 0):
        return np.zeros_like(counts)

    def added(log_threshold: float) -> Int[np.ndarray, "stratum"]:
        wanted = np.floor(0.5 + np.sqrt(0.25 + size * np.exp(-log_threshold)))
        return np.where(size > 0, np.maximum(wanted - counts, 0.0), 0.0)

    # at the upper end nothing is added beyond the first continuation, at the lower end one stratum alone takes more than the budget
    positive = size > 0
    reach = counts[positive] + budget / cost[positive] + 2.0
    low, high = float(np.min(np.log(size[positive]) - 2 * np.log(reach))), float(np.log(np.max(size))) + 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if float(np.sum(added(middle) * cost)) <= budget:
            high = middle
        else:
            low = middle
    found = added(high)
    if float(np.sum(found * cost)) > budget:  # the strata without any continuation alone exceed the budget
        found = np.zeros_like(found)
    found = found.astype(np.int64)
    return found + _next_steps(size, counts + found, cost, budget - float(np.sum(found * cost)))


def _next_steps(
    size: Float[np.ndarray, "stratum"], counts: Int[np.ndarray, "stratum"], cost: Float[np.ndarray, "stratum"], left: float
) -> Int[np.ndarray, "stratum"]:
    """One further step each, best first, until one does not fit."""
    marginal = _marginal(size, counts)
    order = np.lexsort((-size, -marginal))
    fits = np.cumsum(cost[order]) <= left * (1 + 1e-12)
    chosen = order[fits & (marginal[order] > 0)]
    extra = np.zeros(len(size), dtype=np.int64)
    extra[chosen] = 1
    return extra


def counts_for_variance(
    weights: Float[np.ndarray, "teacher node stratum"],
    variance: Float[np.ndarray, "node stratum"],
    cost: Float[np.ndarray, "node stratum"],
    wanted: float,
    least: Int[np.ndarray, "node stratum"],
    most: int,
) -> Int[np.ndarray, "node stratum"]:
    r"""The fewest tokens at each node that bring the variance of every teacher's number there down to what is wanted.

    Args:
        weights: Each number's coefficient of each stratum's success; zero for one that is not to be sampled.
        variance: Variance of one outcome of each stratum.
        cost: Tokens of one continuation, positive.
        wanted: Variance to reach, positive.
        least: Continuations that a stratum has in any case; where this is zero nothing is added.
        most: Most continuations of a stratum.

    Returns:
        Counts in all, rounded up.

    Notes:
        Lagrange: :math:`n_j \propto \sqrt{\sum_t \lambda_t w_{tj}^2 v_j / \text{cost}_j}`, scaled until the largest of the teachers' variances
        :math:`V_t = \sum_j w_{tj}^2 v_j / n_j` is the one that is wanted, whatever the λ. Theirs are found by :math:`\lambda_t \leftarrow
        \lambda_t V_t / \sum_s \lambda_s V_s`, which raises the least number of tokens that λ proves to be needed.

    References:
        Silvey, Titterington and Torsney (1978), An algorithm for optimal designs on a finite design space, for such multiplicative steps.

    Example:
        >>> ones = np.ones((1, 2))
        >>> counts_for_variance(np.array([[[0.5, 0.5]]]), 0.25 * ones, ones, 0.005, np.array([[3, 3]]), 100).tolist()
        [[25, 25]]
        >>> apart = np.array([[[0.5, 0.0]], [[0.0, 0.5]]])  # each teacher needs one stratum: half of what one that needs both would ask of it
        >>> counts_for_variance(apart, 0.25 * ones, ones, 0.005, np.array([[3, 3]]), 100).tolist()
        [[13, 13]]
    """
    size = weights**2 * np.where(least > 0, variance, 0.0)

    def shared_out(multipliers: Float[np.ndarray, "teacher node"]) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.sqrt(np.einsum("tn,tns->ns", multipliers, size) / cost)
        return numbers, np.sum(np.divide(size, numbers, out=np.zeros_like(size), where=numbers > 0), axis=-1)

    multipliers = np.ones(size.shape[:2]) / len(size)
    for _ in range(_STEPS):
        _, reached = shared_out(multipliers)
        total = np.sum(multipliers * reached, axis=0)
        multipliers = multipliers * reached / np.where(total > 0, total, 1.0)
    numbers, reached = shared_out(multipliers)
    counts = np.ceil(numbers * (np.max(reached, axis=0) / wanted)[:, None] - 1e-9)
    return np.where(least > 0, np.clip(counts, least, np.maximum(most, least)), 0).astype(np.int64)


def even_counts_for_variance(
    weights: Float[np.ndarray, "teacher node stratum"],
    variance: Float[np.ndarray, "node stratum"],
    wanted: float,
    least: Int[np.ndarray, "node stratum"],
    most: int,
) -> Int[np.ndarray, "node stratum"]:
    r"""The same number for every stratum of a node, the smallest that brings the variance of each teacher's number down to what is wanted.

    Args:
        weights: Each number's coefficient of each stratum's success.
        variance: Variance of one outcome of each stratum.
        wanted: Variance to reach, positive.
        least: Continuations that a stratum has in any case; where this is zero nothing is added.
        most: Most continuations of a stratum.

    Returns:
        :math:`n = \max_t \sum_j w_{tj}^2 v_j / \text{wanted}`, rounded up.

    Example:
        >>> even_counts_for_variance(np.array([[[0.5, 0.1]]]), np.full((1, 2), 0.25), 0.005, np.array([[3, 3]]), 100).tolist()
        [[13, 13]]
    """
    relevant = np.where(least > 0, variance, 0.0)
    counts = np.ceil(np.max(np.sum(weights**2 * relevant, axis=-1), axis=0) / wanted - 1e-9)[:, None]
    return np.where(least > 0, np.clip(counts, least, np.maximum(most, least)), 0).astype(np.int64)


def cross_fitted_success(
    features: Float[np.ndarray, "row feature"],
    correct: Int[np.ndarray, "row"],
    verified: Int[np.ndarray, "row"],
    fold: Int[np.ndarray, "row"],
    ridge: float = 1.0,
) -> Float[np.ndarray, "row"]:
    r"""Success of each row foretold from its features by a regression that saw the outcomes of other folds only.

    Args:
        features: Cheap features of a stratum, of any scale; a constant is added.
        correct: Continuations that ended CORRECT.
        verified: Continuations with a verdict.
        fold: Rows of one fold share nothing with the fit that is applied to them; make it the question.
        ridge: Penalty on the squared coefficients of the standardised features, the constant excepted.

    Returns:
        Predictions in (0, 1); the smoothed overall share of the other folds where they have one outcome only.

    Notes:
        Logistic regression by Newton's method. What is decided by such a prediction, for example how many continuations a stratum gets, is
        independent of the stratum's own outcomes, so that means remain unbiased.

    Example:
        >>> x, n = np.array([[0.0], [1.0], [0.0], [1.0]]), np.full(4, 50)
        >>> found = cross_fitted_success(x, np.array([5, 45, 5, 45]), n, np.array([0, 0, 1, 1]))
        >>> found.round(1).tolist()
        [0.1, 0.9, 0.1, 0.9]
    """
    spread = np.std(features, axis=0)
    scaled = (features - np.mean(features, axis=0)) / np.where(spread > 0, spread, 1.0)
    design = np.concatenate([np.ones((len(features), 1)), scaled], axis=1)
    result = np.empty(len(features))
    for own in np.unique(fold):
        inside = fold == own
        result[inside] = expit(design[inside] @ _logistic(design[~inside], correct[~inside], verified[~inside], ridge))
    return result


def _logistic(
    design: Float[np.ndarray, "row feature"], correct: Int[np.ndarray, "row"], verified: Int[np.ndarray, "row"], ridge: float
) -> Float[np.ndarray, "feature"]:
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 0.0
    share = (correct.sum() + 1.0) / (verified.sum() + 2.0)
    found = np.zeros(design.shape[1])
    found[0] = np.log(share / (1.0 - share))
    if correct.sum() in (0, verified.sum()):  # the fit would run away to certainty
        return found
    for _ in range(25):
        probs = expit(design @ found)
        slope = design.T @ (correct - verified * probs) - penalty * found
        curvature = (design * (verified * probs * (1.0 - probs))[:, None]).T @ design + np.diag(penalty) + 1e-9 * np.eye(len(found))
        step = np.linalg.solve(curvature, slope)
        # a step of more than two units of log-odds overshoots where outcomes are nearly separated
        found = found + step * min(1.0, 2.0 / max(float(np.max(np.abs(step))), 1e-12))
        if float(np.max(np.abs(step))) < 1e-8:
            break
    return found
