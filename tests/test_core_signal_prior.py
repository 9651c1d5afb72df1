"""The prior of success that moves along a teacher's signal: likelihood, what is learned, draws."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import betabinom

from opdscope.core import signal_prior
from opdscope.core.signal_prior import cell_likelihood, draw_success, fit_signal_prior, scaled_signal
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

NODES, STRATA, COUNT = 800, 5, 12


def nodes(slope, strength, seed=0):
    """Success as the prior has it, signals, and a dozen outcomes a stratum."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(NODES, STRATA))
    centre = expit(generator.normal(size=(NODES, 1)) + slope * signal)
    success = generator.beta(strength * centre, strength * (1 - centre))
    counts = np.full(signal.shape, COUNT)
    return success, signal, StratumOutcomes(generator.binomial(COUNT, success), counts, np.full(signal.shape, np.nan))


def test_the_likelihood_is_that_of_beta_binomial_outcomes():
    generator = np.random.default_rng(0)
    signal, tokens = generator.normal(size=(3, 4)), np.array([[1.0, 1.0, 1.0, 3.0]] * 3)
    outcomes = StratumOutcomes(generator.integers(0, 9, size=(3, 4)), np.full((3, 4), 8), np.full((3, 4), np.nan))
    found = cell_likelihood(outcomes, signal, tokens).reshape(3, *signal_prior._SHAPE)
    for node, slope, strength in ((0, 5, 3), (1, 2, 6), (2, 8, 9)):
        values = signal_prior._VALUES
        centre = expit(values[:, None] + signal_prior._SLOPES[slope] * signal[node])
        total = tokens[node] * (signal_prior._STRENGTHS[strength] + 1) - 1
        exact = np.sum(betabinom.logpmf(outcomes.num_correct[node], 8, total * centre, total * (1 - centre)), axis=1)
        middle = slice(4, -4)  # the outermost centres lie beyond the table
        # between centres h = 1/4 apart a straight line is off by at most h² / 8 times the curvature, which is at most n / 4 a stratum
        error = 4 * 0.25**2 / 8 * 8 / 4
        np.testing.assert_allclose(np.diff(np.log(found[node, slope, strength, middle])), np.diff(exact[middle]), atol=2 * error)


def test_outcomes_that_are_known_tell_nothing_of_the_prior():
    terminal = np.array([[np.nan, 1.0]])
    some = cell_likelihood(StratumOutcomes(np.array([[3, 0]]), np.array([[5, 0]]), terminal), np.array([[0.4, 2.0]]), np.ones((1, 2)))
    alone = cell_likelihood(StratumOutcomes(np.array([[3]]), np.array([[5]]), terminal[:, :1]), np.array([[0.4]]), np.ones((1, 1)))
    np.testing.assert_allclose(some, alone, rtol=1e-5)
    with pytest.raises(ShapeError, match="same nodes and strata"):
        cell_likelihood(StratumOutcomes(np.array([[3]]), np.array([[5]]), terminal[:, :1]), np.ones((1, 2)), np.ones((1, 2)))


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_the_slope_is_learned_and_draws_hold_the_truth_as_often_as_they_say(slope):
    success, signal, outcomes = nodes(slope, 6.0)
    tokens = np.ones(signal.shape)
    likelihood = cell_likelihood(outcomes, signal, tokens)
    prior = fit_signal_prior(likelihood)
    assert prior.cells.sum() == pytest.approx(1.0, rel=1e-6)
    # outcomes tell a node's slope to about 1 / √(5 · 4 · 12 · .2) = .2 with strength 6 in the way, and the grid has steps of a factor of two
    assert abs(np.sum(prior.slopes * signal_prior._SLOPES) - slope) < 0.2
    sources = [np.random.default_rng([1, i]) for i in range(NODES)]
    draws = draw_success(prior, likelihood, outcomes, signal, tokens, 199, sources).success
    low, high = np.sort(draws, axis=0)[[9, 189]]
    # 4,000 strata, five of a node share its prior: four standard errors of 800 nodes are .042 at most
    assert abs(np.mean((low <= success) & (success <= high)) - 0.9) < 0.042
    assert abs(np.mean(draws.mean(axis=0) - success)) < 4 * np.std(success - draws.mean(axis=0)) / np.sqrt(NODES)


def test_draws_know_the_teacher_where_outcomes_say_nothing():
    _, signal, outcomes = nodes(1.6, 50.0)
    prior = fit_signal_prior(cell_likelihood(outcomes, signal, np.ones(signal.shape)))
    nothing = StratumOutcomes(np.zeros((1, 2), dtype=int), np.zeros((1, 2), dtype=int), np.full((1, 2), np.nan))
    pushed = np.array([[1.0, -1.0]])
    likelihood = cell_likelihood(nothing, pushed, np.ones((1, 2)))
    draws = draw_success(prior, likelihood, nothing, pushed, np.ones((1, 2)), 400, [np.random.default_rng(0)]).success
    # with strength 50 a stratum at a slope of 1.6 either way is on the right side of the other but for the nodes that EM leaves elsewhere
    assert np.mean(draws[:, 0, 0] > draws[:, 0, 1]) > 0.9


def test_without_a_node_the_prior_is_where_the_search_begins():
    empty = np.zeros((0, 3))
    prior = fit_signal_prior(cell_likelihood(StratumOutcomes(empty, empty, empty), empty, empty))
    assert prior.cells.sum() == pytest.approx(1.0, rel=1e-12)
    assert prior.cells[signal_prior._SAME].sum() == pytest.approx(signal_prior._AT_FIRST, rel=1e-12)
    np.testing.assert_allclose(prior.slopes, prior.slopes[::-1], rtol=1e-12)


def test_a_signal_is_centred_and_has_one_unit_for_all_nodes():
    outcomes = StratumOutcomes(np.zeros((2, 3)), np.zeros((2, 3)), np.array([[np.nan] * 3, [np.nan, np.nan, 1.0]]))
    probs, signal = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]), np.array([[3.0, 1.0, 0.0], [0.0, np.inf, 4.0]])
    scaled, unit = scaled_signal(probs, signal, outcomes)
    # centred: 1 and -1; at the second node only the first stratum is finite and sampled, one below the mean of 1
    assert unit == pytest.approx(1.0)
    assert scaled.tolist() == [[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]
    assert scaled_signal(probs, np.zeros((2, 3)), outcomes)[1] == 1.0
