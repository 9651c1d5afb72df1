"""The prior of success at nodes as a teacher sees them: what is learned, and draws that hold the truth as often as they say."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import betabinom

from opdscope.core import node_prior, odd_token, signal_prior
from opdscope.core.node_prior import NodeLikelihood, NodeOutcomes, draw_success, fit_node_prior
from opdscope.core.stratum_tables import STRENGTHS
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

NODES, STRATA, COUNT = 800, 5, 12


def nodes(slope, strength, seed=0):
    """Success that follows the signal, signals, and a dozen outcomes a stratum."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(NODES, STRATA))
    centre = expit(generator.normal(size=(NODES, 1)) + slope * signal)
    success = generator.beta(strength * centre, strength * (1 - centre))
    counts = np.full(signal.shape, COUNT)
    return success, signal, StratumOutcomes(generator.binomial(COUNT, success), counts, np.full(signal.shape, np.nan))


def likelihood_of(outcomes, signal, probs=None):
    probs = np.full(signal.shape, 1.0 / STRATA) if probs is None else probs
    told = NodeOutcomes.of(outcomes, np.ones(signal.shape), probs, np.zeros(signal.shape, dtype=bool))
    return NodeLikelihood.of(told, signal)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_the_slope_is_learned_and_draws_hold_the_truth_as_often_as_they_say(slope):
    success, signal, outcomes = nodes(slope, 6.0)
    likelihood = likelihood_of(outcomes, signal)
    prior = fit_node_prior(likelihood)
    assert prior.along.sum() + prior.odd_share == pytest.approx(1.0, rel=1e-6)
    # outcomes tell a node's slope to about 1 / √(5 · 4 · 12 · .2) = .2 with strength 6 in the way, and the grid has steps of a factor of two
    assert abs(np.sum(prior.slopes * signal_prior.SLOPES) - slope) < 0.2
    sources = [np.random.default_rng([1, i]) for i in range(NODES)]
    draws = draw_success(prior, likelihood, outcomes, np.ones(signal.shape), 199, sources).success
    low, high = np.sort(draws, axis=0)[[9, 189]]
    # 4,000 strata, five of a node share its prior: four standard errors of 800 nodes are .042 at most
    assert abs(np.mean((low <= success) & (success <= high)) - 0.9) < 0.042
    assert abs(np.mean(draws.mean(axis=0) - success)) < 4 * np.std(success - draws.mean(axis=0)) / np.sqrt(NODES)


def test_draws_know_the_teacher_where_outcomes_say_nothing():
    _, signal, outcomes = nodes(1.6, 50.0)
    prior = fit_node_prior(likelihood_of(outcomes, signal))
    nothing = StratumOutcomes(np.zeros((1, 2), dtype=int), np.zeros((1, 2), dtype=int), np.full((1, 2), np.nan))
    likelihood = likelihood_of(nothing, np.array([[1.0, -1.0]]))
    draws = draw_success(prior, likelihood, nothing, np.ones((1, 2)), 400, [np.random.default_rng(0)]).success
    # with strength 50 a stratum at a slope of 1.6 either way is on the right side of the other but for the nodes that EM leaves elsewhere
    assert np.mean(draws[:, 0, 0] > draws[:, 0, 1]) > 0.9


def slips(seed=0, share=0.4, count=COUNT):
    """Nodes of which a share has one rare token that succeeds less often; at the others all tokens agree."""
    generator = np.random.default_rng(seed)
    order = generator.permuted(np.tile(np.arange(STRATA), (NODES, 1)), axis=1)
    probs = np.array([0.6, 0.25, 0.08, 0.05, 0.02])[order]
    signal = generator.normal(size=probs.shape)
    odd = generator.random(NODES) < share
    level = np.repeat(generator.normal(1.5, 0.7, size=(NODES, 1)), STRATA, axis=1)
    level -= np.where((order == 3) & odd[:, None], generator.uniform(1.0, 4.0, size=(NODES, 1)), 0.0)
    success = expit(level)
    counts = np.full(probs.shape, count)
    return success, odd, order, probs, signal, StratumOutcomes(generator.binomial(counts, success), counts, np.full(probs.shape, np.nan))


def test_nodes_with_one_odd_token_are_learned_and_it_is_found():
    success, odd, order, probs, signal, outcomes = slips()
    likelihood = likelihood_of(outcomes, signal, probs)
    prior = fit_node_prior(likelihood)
    # an odd token that is off by a logit is told from none by a dozen outcomes at one node of three or so
    assert 0.2 < prior.odd_share < 0.5
    sources = [np.random.default_rng([2, i]) for i in range(NODES)]
    draws = draw_success(prior, likelihood, outcomes, np.ones(signal.shape), 199, sources).success[:, odd]
    low, high = np.sort(draws, axis=0)[[9, 189]]
    covered = np.mean((low <= success[odd]) & (success[odd] <= high))
    # 320 nodes with a common centre each: four standard errors are .067; the prior's finite strength, where theirs is infinite, widens
    assert covered > 0.9 - 0.067
    slip = order[odd] == 3
    gap = np.mean(draws, axis=0)[slip] - (np.sum(np.mean(draws, axis=0), axis=1) - np.mean(draws, axis=0)[slip]) / (STRATA - 1)
    assert np.mean(gap < 0) > 0.97


def foretold(learn_from, told, with_odd):
    """Log-likelihood of some nodes' outcomes under the prior that was learned from others."""

    def likelihood(outcomes, signal, probs):
        none = np.full(probs.shape, not with_odd)  # a tail is never the odd one
        return NodeLikelihood.of(NodeOutcomes.of(outcomes, np.ones(probs.shape), probs, none), signal)

    prior, own = fit_node_prior(likelihood(*learn_from)), likelihood(*told)
    of_odd = own.odd.total(own.odd.chances(prior.odd)) @ (prior.odd_share * prior.odd.cells).ravel()
    evidence = own.along @ prior.along.ravel() + of_odd
    top = np.log(likelihood_of(*told).along @ prior.along.ravel()) - np.log(
        own.along @ prior.along.ravel()
    )  # each is scaled by its own largest
    return float(np.sum(np.log(evidence) + top))


def test_odd_tokens_foretell_the_outcomes_of_other_nodes_and_cost_little_where_there_are_none():
    def drawn(seed):
        _, _, _, probs, signal, outcomes = slips(seed)
        return outcomes, signal, probs

    def plain(seed):
        _, signal, outcomes = nodes(1.0, 6.0, seed)
        return outcomes, signal, np.full(signal.shape, 1.0 / STRATA)

    assert foretold(drawn(1), drawn(2), True) - foretold(drawn(1), drawn(2), False) > 50
    # the share that is added to them, 1.2 of 800 nodes, and what the search leaves there
    assert foretold(plain(1), plain(2), True) - foretold(plain(1), plain(2), False) > -10


def test_a_node_without_outcomes_has_the_odd_tokens_of_the_others():
    _, _, _, probs, signal, outcomes = slips()
    prior = fit_node_prior(likelihood_of(outcomes, signal, probs))
    nothing = StratumOutcomes(np.zeros((1, STRATA), dtype=int), np.zeros((1, STRATA), dtype=int), np.full((1, STRATA), np.nan))
    own = np.array([[0.6, 0.25, 0.08, 0.05, 0.02]])
    draws = draw_success(
        prior, likelihood_of(nothing, np.zeros((1, STRATA)), own), nothing, np.ones((1, STRATA)), 2000, [np.random.default_rng(0)]
    )
    lowest = np.argmin(draws.success[:, 0], axis=1)
    # tokens of .05 and .08 are in one group of probabilities, and the odd ones in it; at the other nodes each of five is the lowest as often
    assert np.mean((lowest == 2) | (lowest == 3)) > 0.6


def test_both_kinds_of_nodes_are_on_one_scale():
    # at the first node one token is odd, at the second all follow the signal
    correct, count = np.array([[9, 10, 1, 9, 10], [1, 4, 6, 8, 10]]), np.full((2, STRATA), 10)
    signal = np.array([[0.0, 0.0, 0.0, 0.0, 0.0], [-2.0, -0.5, 0.0, 1.0, 2.0]])
    likelihood = likelihood_of(StratumOutcomes(correct, count, np.full((2, STRATA), np.nan)), signal)
    along = likelihood.along.reshape(2, *signal_prior.SHAPE)
    np.testing.assert_allclose(np.maximum(along.max(axis=(1, 2, 3)), likelihood.odd.scale), 1.0)
    which, slope = 4, 8
    strength = STRENGTHS[which]
    for node, value, stratum, offset in ((0, 8, 2, 0), (1, 6, 0, 1)):
        odd_centre = expit(odd_token.VALUES[value] + odd_token.OFFSETS[offset] * (np.arange(STRATA) == stratum))
        own_centre = expit(signal_prior.VALUES[2 * value] + signal_prior.SLOPES[slope] * signal[node])
        exact = [betabinom.logpmf(correct[node], 10, strength * m, strength * (1 - m)).sum() for m in (odd_centre, own_centre)]
        odd = likelihood.odd.told.parts[node, stratum, offset, value, 0] * likelihood.odd.scale[node]
        # centres are tabulated a quarter apart: a straight line between them is off by at most h² / 8 times n / 4 a stratum
        assert np.log(odd) - np.log(along[node, slope, which, 2 * value]) == pytest.approx(
            exact[0] - exact[1], abs=5 * 0.25**2 / 8 * 10 / 4
        )


def test_nodes_that_can_have_no_odd_token_do_not_lower_the_share_of_those_that_have_one():
    _, _, _, probs, signal, outcomes = slips()
    alone = fit_node_prior(likelihood_of(outcomes, signal, probs))
    known = np.repeat(np.array([[np.nan] * STRATA, [1.0] * STRATA]), NODES, axis=0)
    both = StratumOutcomes(np.tile(outcomes.num_correct, (2, 1)), np.tile(outcomes.num_verified, (2, 1)), known)
    among = fit_node_prior(likelihood_of(both, np.tile(signal, (2, 1)), np.tile(probs, (2, 1))))
    # the settled ones tell of nothing; the search, which begins at none, comes as far
    assert among.odd_share == pytest.approx(alone.odd_share, rel=0.02)


def test_inputs_of_unequal_shape_are_refused_and_no_node_is_fine():
    outcomes = StratumOutcomes(np.zeros((2, 3)), np.zeros((2, 3)), np.full((2, 3), np.nan))
    with pytest.raises(ShapeError, match="same nodes and strata"):
        NodeOutcomes.of(outcomes, np.ones((2, 3)), np.ones((1, 3)), np.zeros((2, 3), dtype=bool))
    empty = np.zeros((0, 3))
    nothing = StratumOutcomes(empty, empty, empty)
    likelihood = NodeLikelihood.of(NodeOutcomes.of(nothing, empty, empty, empty.astype(bool)), empty)
    assert draw_success(fit_node_prior(likelihood), likelihood, nothing, empty, 5, []).success.shape == (5, 0, 3)


def test_how_tokens_of_the_tail_differ_beside_an_odd_one_is_left_open():
    _, _, _, probs, signal, outcomes = slips()
    prior = fit_node_prior(likelihood_of(outcomes, signal, probs))
    surely = StratumOutcomes(np.array([[150, 150, 0, 150, 150]]), np.full((1, STRATA), 200), np.full((1, STRATA), np.nan))
    own, count = np.array([[0.6, 0.25, 0.08, 0.05, 0.02]]), 2000
    likelihood = likelihood_of(surely, np.zeros((1, STRATA)), own)
    strength = draw_success(prior, likelihood, surely, np.ones((1, STRATA)), count, [np.random.default_rng(0)]).strength
    shares = np.array([np.mean(strength == own) for own in STRENGTHS])
    # ten strengths, each as often; four binomial standard errors, and a percent for draws without an odd token
    assert np.all(np.abs(shares[:-1] - 0.1) < 4 * np.sqrt(0.09 / count) + 0.01)


def test_without_a_node_the_prior_is_where_the_search_begins():
    empty = np.zeros((0, STRATA))
    prior = fit_node_prior(likelihood_of(StratumOutcomes(empty, empty, empty), empty))
    assert prior.along.sum() + prior.odd_share == pytest.approx(1.0, rel=1e-12)
    assert prior.along[signal_prior.SAME].sum() == pytest.approx(node_prior._SAME_AT_FIRST, rel=1e-12)
    np.testing.assert_allclose(prior.slopes, prior.slopes[::-1], rtol=1e-12)
