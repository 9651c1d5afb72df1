"""Cells of the prior of success that follow a teacher's signal: their likelihood, and the signal's unit."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import betabinom

from opdscope.core.signal_prior import SLOPES, VALUES, scaled_signal, signal_logs
from opdscope.core.stratum_tables import STRENGTHS, tabulate
from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError


def test_the_likelihood_is_that_of_beta_binomial_outcomes():
    generator = np.random.default_rng(0)
    count = 40  # more than are added up at once
    signal, tokens = generator.normal(size=(count, 4)), np.array([[1.0, 1.0, 1.0, 3.0]] * count)
    outcomes = StratumOutcomes(generator.integers(0, 9, size=(count, 4)), np.full((count, 4), 8), np.full((count, 4), np.nan))
    found = signal_logs(tabulate(outcomes, tokens), signal)
    for node, slope, strength in ((0, 5, 3), (1, 2, 6), (39, 8, 9)):
        centre = expit(VALUES[:, None] + SLOPES[slope] * signal[node])
        total = tokens[node] * (STRENGTHS[strength] + 1) - 1
        exact = np.sum(betabinom.logpmf(outcomes.num_correct[node], 8, total * centre, total * (1 - centre)), axis=1)
        middle = slice(4, -4)  # the outermost centres lie beyond the table
        # between centres h = 1/4 apart a straight line is off by at most h² / 8 times the curvature, which is at most n / 4 a stratum
        error = 4 * 0.25**2 / 8 * 8 / 4
        np.testing.assert_allclose(np.diff(found[node, slope, middle, strength]), np.diff(exact[middle]), atol=2 * error)


def test_outcomes_that_are_known_tell_nothing_of_the_prior():
    terminal = np.array([[np.nan, 1.0]])
    some = signal_logs(tabulate(StratumOutcomes(np.array([[3, 0]]), np.array([[5, 0]]), terminal), np.ones((1, 2))), np.array([[0.4, 2.0]]))
    single = tabulate(StratumOutcomes(np.array([[3]]), np.array([[5]]), terminal[:, :1]), np.ones((1, 1)))
    alone = signal_logs(single, np.array([[0.4]]))
    np.testing.assert_allclose(some, alone, rtol=1e-5)
    with pytest.raises(ShapeError, match="same nodes and strata"):
        signal_logs(single, np.ones((1, 2)))


def test_a_signal_is_centred_and_has_one_unit_for_all_nodes():
    outcomes = StratumOutcomes(np.zeros((2, 3)), np.zeros((2, 3)), np.array([[np.nan] * 3, [np.nan, np.nan, 1.0]]))
    probs, signal = np.array([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]), np.array([[3.0, 1.0, 0.0], [0.0, np.inf, 4.0]])
    scaled, unit = scaled_signal(probs, signal, outcomes)
    # centred: 1 and -1; at the second node only the first stratum is finite and sampled, one below the mean of 1
    assert unit == pytest.approx(1.0)
    assert scaled.tolist() == [[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]
    assert scaled_signal(probs, np.zeros((2, 3)), outcomes)[1] == 1.0
