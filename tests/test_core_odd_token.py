"""Nodes with one odd token: likelihood and chances against their formulas, and what is learned of which token it is."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import betabinom

from opdscope.core import odd_token
from opdscope.core.odd_token import (
    LEANS,
    ODD_STRENGTHS,
    OFFSETS,
    SHAPE,
    VALUES,
    OddLikelihood,
    OddOutcomes,
    OddPrior,
    odd_logs,
    probability_group,
)
from opdscope.core.stratum_tables import tabulate
from opdscope.core.success import StratumOutcomes

PROBS = np.array([[0.7, 0.2, 0.05, 0.04, 0.01]])
IS_TAIL = np.array([[False, False, False, False, True]])
SIGNAL = np.array([[0.1, -0.4, 1.5, -2.0, 0.3]])
OUTCOMES = StratumOutcomes(np.array([[6, 3, 0, 3, 2]]), np.array([[8, 4, 3, 3, 3]]), np.full((1, 5), np.nan))
TOKENS = np.array([[1.0, 1.0, 1.0, 1.0, 3.0]])


def likelihood(outcomes=OUTCOMES, signal=SIGNAL, tokens=TOKENS, probs=PROBS, is_tail=IS_TAIL):
    possible = (probs > 0) & ~is_tail
    return OddLikelihood(OddOutcomes.of(tabulate(outcomes, tokens), probs, possible), signal, np.ones(len(signal)))


def some_prior(seed=0):
    generator = np.random.default_rng(seed)
    cells, weights = generator.random(SHAPE), generator.random(len(OddPrior.even().weights))
    return OddPrior(cells / cells.sum(), weights / weights.sum())


def test_likelihood_moves_the_centre_of_one_stratum():
    logs = odd_logs(tabulate(OUTCOMES, TOKENS), ~IS_TAIL)
    assert np.all(np.isneginf(logs[:, 4]))  # the tail is no single token
    for stratum, offset, value, strength in ((0, 2, 5, 0), (1, 7, 3, 1), (3, 5, 8, 2)):

        def exact(value, stratum=stratum, offset=offset, strength=strength):
            centre = expit(VALUES[value] + OFFSETS[offset] * (np.arange(5) == stratum))
            total = TOKENS[0] * (ODD_STRENGTHS[strength] + 1) - 1
            return betabinom.logpmf(OUTCOMES.num_correct[0], OUTCOMES.num_verified[0], total * centre, total * (1 - centre)).sum()

        found = logs[0, stratum, offset, value, strength] - logs[0, stratum, offset, value + 1, strength]
        assert found == pytest.approx(exact(value) - exact(value + 1), abs=1e-4)
        assert logs[0, stratum, offset, value, strength] - logs[0, 2, offset, value, strength] == pytest.approx(
            exact(value) - exact(value, stratum=2), abs=1e-4
        )


def test_chances_go_by_probability_and_signal():
    prior = some_prior()
    chances = likelihood().chances(prior)
    weights = prior.weights[[6, 4, 3, 3]]  # .7, .2, .05 and .04 lie in these groups
    for side, sign in enumerate((-1.0, 1.0)):
        for lean, push in enumerate(LEANS):
            readiness = weights * np.exp(sign * push * SIGNAL[0, :4])
            np.testing.assert_allclose(chances[side, 0, :4, lean], readiness / readiness.sum(), rtol=1e-12)
    assert np.all(chances[:, 0, 4] == 0.0)


def test_a_node_that_can_have_no_odd_token_has_no_such_likelihood():
    outcomes = StratumOutcomes(np.array([[2, 0]]), np.array([[4, 0]]), np.array([[np.nan, 1.0]]))
    possible = np.zeros((1, 2), dtype=bool)
    told = OddOutcomes.of(tabulate(outcomes, np.ones((1, 2))), np.array([[0.5, 0.5]]), possible)
    assert np.isneginf(told.largest[0])
    alone = OddLikelihood(told, np.zeros((1, 2)), np.exp(told.largest))
    chances = alone.chances(OddPrior.even())
    assert np.all(alone.total(chances) == 0.0)
    learned = alone.learned_weights(OddPrior.even(), chances, 0.1, np.ones(1))
    np.testing.assert_allclose(learned.weights, OddPrior.even().weights)


def test_the_whole_is_the_mean_over_which_token_it_is_and_draws_find_it():
    own, prior = likelihood(), some_prior()
    chances = own.chances(prior)
    total = own.total(chances).reshape(SHAPE)
    exact = np.zeros(SHAPE)
    for offset in range(SHAPE[0]):
        for stratum in range(5):
            exact[offset] += own.told.parts[0, stratum, offset][..., None] * chances[int(OFFSETS[offset] > 0), 0, stratum]
    np.testing.assert_allclose(total, exact, rtol=1e-4, atol=1e-7)
    cell = (8, 4, 1, 2)
    count = 20_000
    numbers = np.random.default_rng(0).random((count, 3))
    draws = own.draw_odd(np.zeros(count, dtype=int), chances, np.full(count, np.ravel_multi_index(cell, SHAPE)), numbers)
    assert np.all(draws.strength == ODD_STRENGTHS[1])
    assert np.all(np.abs(draws.level - VALUES[4]) <= 0.5)
    # anywhere from the middle to the next difference, which is up to twice as large
    assert np.all(np.abs(np.log(draws.offset / OFFSETS[8])) <= 0.35)
    share = np.bincount(draws.token, minlength=5) / count
    wanted = chances[1, 0, :, 2] * own.told.parts[0, :, 8, 4, 1]
    wanted = wanted / wanted.sum()
    assert np.all(np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / count) + 1e-12)


def test_what_the_largest_of_a_node_counts_as_is_a_factor_of_its_likelihood():
    outcomes, signal, probs = simulated(50)
    own, prior = likelihood(outcomes, signal, np.ones(probs.shape), probs, np.zeros(probs.shape, dtype=bool)), some_prior()
    scale = np.random.default_rng(0).random(50)
    scaled = OddLikelihood(own.told, signal, scale)
    chances = own.chances(prior)
    np.testing.assert_allclose(scaled.total(chances), scale[:, None] * own.total(chances), rtol=1e-5)
    # float32; a node whose whole evidence is smaller by the same factor says as much of which token is the odd one
    evidence = own.total(chances) @ prior.cells.ravel()
    learned, expected = scaled.learned_weights(prior, chances, 0.7, scale * evidence), own.learned_weights(prior, chances, 0.7, evidence)
    np.testing.assert_allclose(learned.weights, expected.weights, rtol=1e-5)


def simulated(count=1500, seed=0):
    """Nodes at which the third token, a rare one, succeeds less often, and a teacher that says so."""
    generator = np.random.default_rng(seed)
    probs = np.array([0.6, 0.2, 0.05, 0.02, 0.13])[generator.permuted(np.tile(np.arange(5), (count, 1)), axis=1)]
    odd = np.argmax(probs == 0.05, axis=1)
    signal = generator.normal(size=probs.shape)
    signal[np.arange(count), odd] -= 1.5
    level = np.full(probs.shape, 1.0)
    level[np.arange(count), odd] = -1.0
    outcomes = StratumOutcomes(generator.binomial(6, expit(level)), np.full(probs.shape, 6), np.full(probs.shape, np.nan))
    return outcomes, signal, probs


def test_which_token_is_odd_is_learned_and_never_at_the_cost_of_likelihood():
    outcomes, signal, probs = simulated()
    own = likelihood(outcomes, signal, np.ones(probs.shape), probs, np.zeros(probs.shape, dtype=bool))
    prior, logs = OddPrior.even(), []
    for _ in range(8):
        chances = own.chances(prior)
        total = own.total(chances)
        evidence = total @ prior.cells.astype(np.float32).ravel()
        # with what is added, which is a prior on weights: one choice from one token of each group, for each group
        logs.append(np.sum(np.log(evidence)) + np.sum(np.log(prior.weights)))
        prior = own.learned_weights(prior, chances, 1.0, evidence)
    # float32 sums of 1,500 logarithms
    assert np.all(np.diff(logs) > -0.05)
    assert logs[-1] - logs[0] > 100
    groups = probability_group(np.array([0.6, 0.2, 0.05, 0.02, 0.13]))
    assert prior.weights[groups[2]] > 0.8 * prior.weights[groups].sum()


def test_cells_are_smoothed_and_keep_their_number():
    expected = np.zeros(SHAPE)
    expected[1, 6, 2, 0] = 1000.0
    updated = OddPrior.even().updated(expected)
    assert updated.cells.sum() == pytest.approx(1.0)
    places = updated.cells.sum(axis=(2, 3))
    # less often does not become more often; neighbours share, those two logits off with exp(-1/2) of the middle's weight
    assert places[5:].sum() < 1.01 * odd_token.ADDED / (1000.0 + odd_token.ADDED)
    assert places[1, 6] > places[1, 5] > places[1, 4] > places[1, 0]
    assert places[1, 6] > places[0, 6] > places[3, 6]
    assert places[1, 4] / places[1, 6] == pytest.approx(np.exp(-0.5), rel=0.01)
