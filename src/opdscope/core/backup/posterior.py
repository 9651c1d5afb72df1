"""What later nodes say in counts and in posterior draws."""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import xlog1py, xlogy

from opdscope.core.backup.estimates import back_up, interval_variance
from opdscope.core.backup.links import PathLinks, linked_nodes, require_same_nodes
from opdscope.core.success import StratumOutcomes, posterior_success

_ITERATIONS = 40
"""Of a fixed point whose error at least halves with each."""


def backed_up_outcomes(student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks) -> StratumOutcomes:
    r"""Counts of independent continuations that would tell as much of each stratum as its own and those of later nodes do.

    Args:
        student_probs: Student probability of each stratum, summing to one.
        outcomes: Verdicts of each node's own continuations.
        links: Which strata lead on to other nodes.

    Returns:
        The outcomes as they are, but for the strata that lead on: there n and c solve :math:`c = n \bar S` with the backed-up success and
        :math:`\tilde S (1 - \tilde S) / n = v` with :math:`\tilde S = (c + 1) / (n + 2)` and the variance of :func:`interval_variance`.

    Raises:
        ShapeError: If probabilities, outcomes and links are not about the same nodes and strata.

    Example:
        >>> outcomes = StratumOutcomes(np.array([[2, 1], [6, 2]]), np.array([[4, 4], [8, 8]]), np.full((2, 2), np.nan))
        >>> links = PathLinks(np.array([1, -1]), np.array([0, 0]), np.array([3, 0]), np.array([2, 0]), np.array([0.8, 1.0]))
        >>> backed_up_outcomes(np.array([[0.9, 0.1], [0.5, 0.5]]), outcomes, links).num_verified.round(1).tolist()
        [[10.4, 4.0], [8.0, 8.0]]
    """
    require_same_nodes(student_probs, outcomes, links)
    rows = np.flatnonzero(linked_nodes(student_probs, outcomes, links))
    place = rows, links.stratum[rows]
    mean = np.clip(back_up(student_probs, outcomes, links).mean[place], 0.0, 1.0)
    variance = np.maximum(interval_variance(student_probs, outcomes, links)[place], 1e-9)
    count = np.maximum(outcomes.num_verified[place].astype(np.float64), 1.0)
    for _ in range(_ITERATIONS):
        share = (count * mean + 1.0) / (count + 2.0)
        # the step alone would overshoot; the geometric mean halves its error
        count = np.sqrt(count * share * (1.0 - share) / variance)
    verified, correct = (values.astype(np.float64) for values in (outcomes.num_verified, outcomes.num_correct))
    verified[place], correct[place] = count, count * mean
    return StratumOutcomes(correct, verified, outcomes.terminal)


def backed_up_posterior(
    student_probs: Float[np.ndarray, "node stratum"],
    outcomes: StratumOutcomes,
    links: PathLinks,
    prior_means: Float[np.ndarray, "draw node"],
    strengths: Float[np.ndarray, "draw node"],
    generators: Sequence[np.random.Generator],
) -> Float[np.ndarray, "draw node stratum"]:
    r"""Draws of every stratum's success given its outcomes and those of later nodes.

    Args:
        student_probs: Student probability of each stratum, summing to one.
        outcomes: Verdicts of each node's own continuations.
        links: Which strata lead on to other nodes.
        prior_means: Draws of the centre of each node's prior, from :func:`opdscope.core.success.draw_priors`.
        strengths: Its strength κ in the same draws, in continuations.
        generators: Source of randomness of each node.

    Returns:
        Draws in [0, 1]. Strata that :func:`back_up` leaves as they are have the draws of
        :func:`opdscope.core.success.posterior_success`.

    Raises:
        ShapeError: If probabilities, outcomes and links are not about the same nodes and strata.

    Notes:
        :math:`S = \rho V + (1 - \rho) L` with ρ the staying probability, :math:`L \sim \operatorname{Beta}(\kappa m + c, \kappa (1 - m) + w)`
        for c correct and w wrong among the continuations that leave, and V the next node's value, :math:`\sum_j p_j S_j` over that node's
        draws. Arrivals enter by Bayes' rule: V's draws are drawn again with weights :math:`V^a (1 - V)^b` for a correct and b wrong ones.

    References:
        Smith and Gelfand (1992), Bayesian statistics without tears: a sampling–resampling perspective.

    Example:
        >>> outcomes = StratumOutcomes(np.array([[2, 1], [6, 2]]), np.array([[4, 4], [8, 8]]), np.full((2, 2), np.nan))
        >>> links = PathLinks(np.array([1, -1]), np.array([0, 0]), np.array([3, 0]), np.array([2, 0]), np.array([0.8, 1.0]))
        >>> sources = [np.random.default_rng(node) for node in range(2)]
        >>> draws = backed_up_posterior(np.array([[0.9, 0.1], [0.5, 0.5]]), outcomes, links, np.full((400, 2), 0.5), np.full((400, 2), 2.0), sources)
        >>> draws.shape, bool(0.4 < draws[:, 0, 0].mean() < 0.5)
        ((400, 2, 2), True)
    """
    require_same_nodes(student_probs, outcomes, links)
    draws = np.empty((len(prior_means), *student_probs.shape))
    linked = linked_nodes(student_probs, outcomes, links)
    for i in reversed(range(len(student_probs))):
        one = outcomes.at(i)
        draws[:, i] = posterior_success(one, prior_means[:, i], strengths[:, i], 1, generators[i])[0]
        if linked[i]:
            y, j = int(links.stratum[i]), int(links.next_node[i])
            stay, stay_correct = float(links.num_staying[i]), float(links.num_staying_correct[i])
            value = draws[:, j] @ student_probs[j] / np.sum(student_probs[j])
            value = _resampled(value, stay_correct, stay - stay_correct, generators[i])
            correct = one.num_correct[y] - stay_correct
            wrong = one.num_verified[y] - one.num_correct[y] - (stay - stay_correct)
            centre = prior_means[:, i]
            left = generators[i].beta(strengths[:, i] * centre + correct, strengths[:, i] * (1.0 - centre) + wrong)
            draws[:, i, y] = links.stay_prob[i] * value + (1.0 - links.stay_prob[i]) * left
    return draws


def _resampled(value: Float[np.ndarray, "draw"], correct: float, wrong: float, generator: np.random.Generator) -> Float[np.ndarray, "draw"]:
    """Draws of a chance after so many more outcomes; evenly spaced ticks, so that without any the draws stay as they are."""
    inside = np.clip(value, 1e-9, 1.0 - 1e-9)  # a chance of exactly 0 or 1 would leave no draw any weight where verdicts disagree with it
    fit = xlogy(correct, inside) + xlog1py(wrong, -inside)
    upper = np.cumsum(np.exp(fit - fit.max()))
    ticks = (np.arange(len(value)) + generator.random()) * (upper[-1] / len(value))
    return value[np.searchsorted(upper[:-1], ticks, side="right")]
