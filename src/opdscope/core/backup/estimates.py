"""Unbiased success with later nodes taken into account, its variance, and that of an interval."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.alignment import variance_of_sum
from opdscope.core.backup.links import PathLinks, from_last_to_first, linked_nodes, require_same_nodes
from opdscope.core.controlled import OutcomeSums, added_squares, count_sums
from opdscope.core.coupling import Coupling
from opdscope.core.success import StratumOutcomes, fill_unsampled


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
    require_same_nodes(student_probs, outcomes, links)
    factor = 1.0 if coupling is None else 1.0 + coupling.pair
    own_sums = count_sums(outcomes, links.stratum, links.num_staying_correct) if sums is None else sums
    success, noise = _own_success(outcomes, own_sums, added)
    variance = noise * factor
    correlations = None
    if coupling is not None and coupling.across:
        counts = np.where(np.isnan(outcomes.terminal), outcomes.num_verified, 0)
        linked = np.flatnonzero(linked_nodes(student_probs, outcomes, links))
        counts[linked, links.stratum[linked]] = 0
        correlations = coupling.correlations(counts)
    spread = np.where(np.isnan(outcomes.terminal), 1.0 / np.maximum(outcomes.num_verified, 1), 0.0)
    for own in from_last_to_first(student_probs, outcomes, links):
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
        >>> from opdscope.core.backup import no_links
        >>> outcomes = StratumOutcomes(np.array([[2, 0, 0]]), np.array([[2, 6, 0]]), np.full((1, 3), np.nan))
        >>> interval_variance(np.array([[0.6, 0.3, 0.1]]), outcomes, no_links(1)).round(4).tolist()
        [[0.0938, 0.0182, 0.0833]]
    """
    count, known = outcomes.num_verified, ~np.isnan(outcomes.terminal)
    _, variance, _ = _backed_up(student_probs, outcomes, links, 1, coupling, sums)
    return np.where((count > 0) | known, variance, 1.0 / 12.0)


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
