r"""Success backed up along paths: what is found at a later node of a path informs the earlier ones.

Nodes :math:`u_1, u_2, \dots` lie on one path. A continuation from :math:`u_i` that was forced through the path's own token *stays* if it
repeats the path until it arrives at :math:`u_{i+1}`, else it *leaves*. From its arrival on, one that stays is a student sample from
:math:`u_{i+1}`, whose value has continuations of its own and those of all later nodes; the mass that leaves is a stratum of its own. Nodes of
different paths share nothing.
"""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import xlog1py, xlogy

from opdscope.core.alignment import variance_of_sum
from opdscope.core.controlled import OutcomeSums, added_squares, count_sums
from opdscope.core.coupling import Coupling
from opdscope.core.success import StratumOutcomes, fill_unsampled, posterior_success
from opdscope.errors import ShapeError

_ITERATIONS = 40
"""Of a fixed point whose error at least halves with each."""


@dataclass(frozen=True)
class PathLinks:
    """How the nodes of a path hang together: one entry per node."""

    next_node: Int[np.ndarray, "node"]
    """Index of the next measured node of the same path, larger than the node's own; -1 where nothing is to be backed up: at the last node of
    a path, and where the path's token has no stratum to itself. What the other fields hold there is ignored."""
    stratum: Int[np.ndarray, "node"]
    """Stratum of the path's token."""
    num_staying: Int[np.ndarray, "node"] | Float[np.ndarray, "node"]
    """Verified continuations of that stratum that repeat the path up to the next node."""
    num_staying_correct: Int[np.ndarray, "node"] | Float[np.ndarray, "node"]
    """Of these, the correct ones."""
    stay_prob: Float[np.ndarray, "node"]
    """Probability that the student, after the path's token, repeats the path up to the next node."""

    def __post_init__(self) -> None:
        shapes = {field.shape for field in (self.next_node, self.stratum, self.num_staying, self.num_staying_correct, self.stay_prob)}
        if len(shapes) > 1:
            raise ShapeError(f"expected one entry per node in every field of the links, found shapes {sorted(shapes)}")
        if np.any((self.next_node >= 0) & (self.next_node <= np.arange(len(self.next_node)))):
            raise ValueError("a link leads to the node itself or to an earlier one; sort the nodes of each path by position")


def no_links(num_nodes: int) -> PathLinks:
    """Links that lead nowhere: every node stands alone."""
    nothing = np.zeros(num_nodes, dtype=np.int64)
    return PathLinks(np.full(num_nodes, -1), nothing, nothing, nothing, np.ones(num_nodes))


@dataclass(frozen=True)
class BackedUpSuccess:
    """Success of every stratum with later nodes taken into account."""

    mean: Float[np.ndarray, "node stratum"]
    """Unbiased wherever a stratum was sampled, in [0, 1] unless outcomes have controls; else as in :func:`opdscope.core.success.mean_success`."""
    variance: Float[np.ndarray, "node stratum"]
    """Unbiased variance of `mean`; conventions of :func:`opdscope.core.success.success_noise`."""
    correlations: Float[np.ndarray, "node stratum stratum"] | None = None
    """Of `mean` within a node, where candidates share random numbers; None: independent."""


@dataclass(frozen=True)
class _Values:
    """Values of nodes, or successes of strata, as estimated."""

    mean: Float[np.ndarray, "node"]
    variance: Float[np.ndarray, "node"]
    spread: Float[np.ndarray, "node"]
    """One over the number of student samples from the node that would tell as much, judged by counts and probabilities alone; 0: known."""


def back_up(
    student_probs: Float[np.ndarray, "node stratum"],
    outcomes: StratumOutcomes,
    links: PathLinks,
    coupling: Coupling | None = None,
    sums: OutcomeSums | None = None,
) -> BackedUpSuccess:
    r"""Success of every stratum, that of a path's own token with the values of later nodes in place of the outcomes of what arrives there.

    Args:
        student_probs: Student probability of each stratum, summing to one.
        outcomes: Verdicts of each node's own continuations.
        links: Which strata lead on to other nodes.
        coupling: How outcomes go together within a node, where they share random numbers; None: they are independent. A success that is backed
            up owes most of its noise to other nodes, and is taken to be independent of its node's others.
        sums: Of the outcomes less their controls; None: they have none.

    Returns:
        Means and their variances. Strata without a link, without a verdict of their own, or with a next node at which nothing is known stay
        as :func:`opdscope.core.success.mean_success` and :func:`opdscope.core.success.success_noise` have them.

    Raises:
        ShapeError: If probabilities, outcomes and links are not about the same nodes and strata.

    Notes:
        Of n continuations through the path's token, s arrive at the next node. With that node's value V estimated by :math:`\hat V`,

        .. math:: \hat S = \hat V + \frac1n \sum_{\text{leaving}} (R - \hat V),

        which needs no staying probability: :math:`\hat V` is independent of the outcomes of those that leave, and its mean is V whoever
        arrives. :math:`\hat V` is the mean of what the next node's own strata say (backed up in turn) and of the arrivals' outcomes, weighted
        by how many samples each is worth. Weights come from counts, student probabilities and the staying probability. An observed share
        of arrivals in the weights of a node further back would be dependent on what it weighs, and so biased; so would be any outcome.

        .. math::

            \widehat{\operatorname{Var}}(\hat S) = \frac{s (s - 1)}{n (n - 1)} \widehat{\operatorname{Var}}(\hat V)
            + \frac{1}{n (n - 1)} \sum (T - \bar T)^2, \qquad T = 1_{\text{leaving}} (R - \hat V).

        The sample variance of T already holds :math:`\hat V`'s noise as far as it differs between staying and leaving; the first factor
        holds the rest: :math:`(s/n)^2` would count a share :math:`\rho (1 - \rho) / n` of it twice.

        With controls, R of those that leave is less that of all their tokens, and :math:`T = -c` for those that arrive, c being the control of
        the path's tokens up to there; the arrivals' outcomes in :math:`\hat V` are less that of the tokens after it. Both have mean zero, the
        second whatever came before.

    Example:
        >>> outcomes = StratumOutcomes(np.array([[2, 1], [6, 2]]), np.array([[4, 4], [8, 8]]), np.full((2, 2), np.nan))
        >>> links = PathLinks(np.array([1, -1]), np.array([0, 0]), np.array([3, 0]), np.array([2, 0]), np.array([0.8, 1.0]))
        >>> found = back_up(np.array([[0.9, 0.1], [0.5, 0.5]]), outcomes, links)
        >>> found.mean.round(3).tolist()  # (3 · (16 · 0.5 + 3 · 2/3) / 19 + 0) / 4 in place of 2/4
        [[0.395, 0.25], [0.75, 0.25]]
        >>> found.variance.round(4).tolist()
        [[0.0234, 0.0625], [0.0268, 0.0268]]
    """
    success, variance, correlations = _backed_up(student_probs, outcomes, links, 0, coupling, sums)
    return BackedUpSuccess(fill_unsampled(student_probs, success), variance, correlations)


def _backed_up(
    student_probs: Float[np.ndarray, "node stratum"],
    outcomes: StratumOutcomes,
    links: PathLinks,
    added: int,
    coupling: Coupling | None,
    sums: OutcomeSums | None,
) -> tuple[Float[np.ndarray, "node stratum"], Float[np.ndarray, "node stratum"], Float[np.ndarray, "node stratum stratum"] | None]:
    """Means, NaN where nothing is known, their variances, and their correlations.

    `added` outcomes of either kind, 0 or 1, enter the variances but no mean and no weight.
    """
    _check_shapes(student_probs, outcomes, links)
    factor = 1.0 if coupling is None else 1.0 + coupling.pair
    own_sums = count_sums(outcomes, links.stratum, links.num_staying_correct) if sums is None else sums
    success, noise = _own_success(outcomes, own_sums, added)
    variance = noise * factor
    correlations = None
    if coupling is not None and coupling.across:
        counts = np.where(np.isnan(outcomes.terminal), outcomes.num_verified, 0)
        linked = np.flatnonzero(_linked(student_probs, outcomes, links))
        counts[linked, links.stratum[linked]] = 0
        correlations = coupling.correlations(counts)
    spread = np.where(np.isnan(outcomes.terminal), 1.0 / np.maximum(outcomes.num_verified, 1), 0.0)
    for own in _from_last_to_first(student_probs, outcomes, links):
        following, place = links.next_node[own], (own, links.stratum[own])
        matched = None if correlations is None else correlations[following]
        value = _node_values(student_probs[following], success[following], variance[following], spread[following], matched)
        taken = _replace_arrivals(value, outcomes.num_verified[place], own_sums, links, own, added, factor)
        success[place], variance[place], spread[place] = taken.mean, taken.variance, taken.spread
    return success, variance, correlations


def interval_variance(
    student_probs: Float[np.ndarray, "node stratum"],
    outcomes: StratumOutcomes,
    links: PathLinks,
    coupling: Coupling | None = None,
    sums: OutcomeSums | None = None,
) -> Float[np.ndarray, "node stratum"]:
    r"""Variance of every stratum's success as an interval needs it: never zero because a few continuations happened to agree.

    Args:
        student_probs: Student probability of each stratum, summing to one.
        outcomes: Verdicts of each node's own continuations.
        links: Which strata lead on to other nodes.
        coupling: As for :func:`back_up`, whose correlations go with these variances.
        sums: As for :func:`back_up`.

    Returns:
        That of :func:`back_up` with one success and one failure added to what each sampled stratum rests on: without a link
        :math:`\tilde S (1 - \tilde S) / n` with :math:`\tilde S = (c + 1) / (n + 2)`; with one, to the arrivals, and to those that leave as far
        as the student leaves at all, :math:`1 - \rho` of either. Zero where success is known; 1/12, that of any success being as likely as any
        other, where nothing was sampled. What is added is scaled by the share of an outcome's variance that controls leave.

    Raises:
        ShapeError: If probabilities, outcomes and links are not about the same nodes and strata.

    Notes:
        A gain is a sum over strata, unbiased, and so needs no prior: with this variance its normal intervals, 90 % by name, covered 88–92 %
        on both exact worlds at 16, 32 and 128 continuations a node, whatever the teacher knew. Posterior draws shrink the success of a
        stratum towards its node's value, and with it the gain of a teacher that knows which strata differ: theirs covered 73–90 %. Where every
        continuation arrives at the next node none is imagined to leave: with a whole success and a failure added to those that do, intervals
        backed up in the tree covered 93–95 % outside of nodes whose outcome is certain.

    References:
        Agresti and Coull (1998), Approximate is better than "exact" for interval estimation of binomial proportions.

    Example:
        >>> outcomes = StratumOutcomes(np.array([[2, 0, 0]]), np.array([[2, 6, 0]]), np.full((1, 3), np.nan))
        >>> interval_variance(np.array([[0.6, 0.3, 0.1]]), outcomes, no_links(1)).round(4).tolist()
        [[0.0938, 0.0182, 0.0833]]
    """
    count, known = outcomes.num_verified, ~np.isnan(outcomes.terminal)
    _, variance, _ = _backed_up(student_probs, outcomes, links, 1, coupling, sums)
    return np.where((count > 0) | known, variance, 1.0 / 12.0)


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
    _check_shapes(student_probs, outcomes, links)
    rows = np.flatnonzero(_linked(student_probs, outcomes, links))
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
    _check_shapes(student_probs, outcomes, links)
    draws = np.empty((len(prior_means), *student_probs.shape))
    linked = _linked(student_probs, outcomes, links)
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


def _check_shapes(student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks) -> None:
    if student_probs.shape != outcomes.num_verified.shape or len(student_probs) != len(links.next_node):
        raise ShapeError(
            f"expected probabilities and outcomes of the {len(links.next_node)} linked nodes, "
            f"found shapes {student_probs.shape} and {outcomes.num_verified.shape}"
        )


def _linked(student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks) -> Bool[np.ndarray, "node"]:
    """Nodes whose path's token was sampled and whose next node has a value to back up."""
    known = (outcomes.num_verified > 0) | ~np.isnan(outcomes.terminal)
    has_value = np.sum(np.where(known, student_probs, 0.0), axis=-1) > 0
    sampled = outcomes.num_verified[np.arange(len(student_probs)), links.stratum] > 0
    return (links.next_node >= 0) & has_value[links.next_node] & sampled


def _from_last_to_first(
    student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks
) -> list[Int[np.ndarray, "own"]]:
    """Linked nodes in groups, each node in a later group than the one that it leads to."""
    linked = _linked(student_probs, outcomes, links)
    steps = np.zeros(len(linked), dtype=np.int64)
    for i in reversed(np.flatnonzero(linked).tolist()):
        steps[i] = steps[links.next_node[i]] + 1
    return [np.flatnonzero(steps == step) for step in range(1, int(steps.max(initial=0)) + 1)]


def _node_values(
    student_probs: Float[np.ndarray, "node stratum"],
    success: Float[np.ndarray, "node stratum"],
    variance: Float[np.ndarray, "node stratum"],
    spread: Float[np.ndarray, "node stratum"],
    correlations: Float[np.ndarray, "node stratum stratum"] | None,
) -> _Values:
    sampled = np.where(np.isnan(success), 0.0, student_probs)
    weight = sampled / np.sum(sampled, axis=-1, keepdims=True)
    mean = np.sum(weight * np.nan_to_num(success), axis=-1)
    return _Values(mean, variance_of_sum(weight, variance, correlations), np.sum(weight**2 * spread, axis=-1))


def _own_success(
    outcomes: StratumOutcomes, sums: OutcomeSums, added: int
) -> tuple[Float[np.ndarray, "node stratum"], Float[np.ndarray, "node stratum"]]:
    """Mean of each stratum's own outcomes, NaN without any, and its variance; exact where success is known.

    The variance is the worst case where a single continuation tells nothing of its own spread, unless outcomes are added.
    """
    count, sampled = outcomes.num_verified, outcomes.num_verified > 0
    mean = np.where(sampled, sums.total / np.maximum(count, 1), np.nan)
    noise = _mean_noise(sums.squares, sums.total, count, added, sums.kept[:, None])
    noise = np.where(sampled, np.where(count + added > 1, noise, 0.25), 0.0)
    known = ~np.isnan(outcomes.terminal)
    return np.where(known, outcomes.terminal, mean), np.where(known, 0.0, noise)


def _mean_noise(
    squares: Float[np.ndarray, "*batch"],
    total: Float[np.ndarray, "*batch"],
    count: Int[np.ndarray, "*batch"],
    added: int,
    kept: Float[np.ndarray, "#*batch"],
) -> Float[np.ndarray, "*batch"]:
    """Variance of a mean of outcomes from their sums; with a success and a failure added the sum of n + 2 is divided by n."""
    mean = total / np.maximum(count, 1)
    spread = np.maximum(squares - total * mean, 0.0) + kept * added_squares(count, mean, added)
    return spread / np.maximum((count + 2 * added) * (count - 1 + added), 1)


def _replace_arrivals(
    value: _Values,
    verified: Int[np.ndarray, "own"],
    sums: OutcomeSums,
    links: PathLinks,
    own: Int[np.ndarray, "own"],
    added: int,
    factor: float,
) -> _Values:
    """Success of the paths' tokens, from the values of the next nodes, those that arrive there, and those that leave.

    `factor` is that of the variance of a stratum's outcomes where they come in pairs.
    """
    stay, stay_prob = links.num_staying[own], links.stay_prob[own]
    stay_total, leave_total, before = sums.staying_total[own], sums.leaving_total[own], sums.before[own]
    weight = 1.0 / (1.0 + stay * value.spread)
    mean = weight * value.mean + (1.0 - weight) * stay_total / np.maximum(stay, 1)
    # with one arrival its noise is unknown, and multiplied by zero below
    noise = weight**2 * value.variance
    noise = noise + factor * (1.0 - weight) ** 2 * _mean_noise(sums.staying_squares[own], stay_total, stay, added, sums.kept[own])
    leave = verified - stay
    total = leave_total - leave * mean - stay * before
    squares = sums.leaving_squares[own] - 2.0 * mean * leave_total + leave * mean**2 + stay * before**2
    either = added * (1.0 - stay_prob)  # added to those that leave, as far as the student leaves at all
    with_added = squares + either * ((1.0 - mean) ** 2 + mean**2) - (total + either * (1.0 - 2.0 * mean)) ** 2 / (verified + 2 * either)
    alone = squares - total**2 / verified
    # with outcomes added the sum of n + 2 is divided by n: see interval_variance
    divisor = np.maximum((verified + 2 * either) * (verified - 1 + added), 1)
    leaving = (np.maximum(alone, 0.0) + sums.kept[own] * (with_added - alone)) / divisor
    variance = stay * (stay - 1) / np.maximum(verified * (verified - 1), 1) * noise + factor * leaving
    # the arrivals that are to be expected, not those that were seen: see the notes on weights
    spread = stay_prob**2 * value.spread / (1.0 + stay_prob * verified * value.spread) + (1.0 - stay_prob) / verified
    # the worst case where a single continuation tells nothing of its own spread, as without a next node
    return _Values((stay * mean + leave_total - stay * before) / verified, np.where(verified > 1, variance, 0.25), spread)
