"""The exact posterior of a cosine that takes two values, which the page of truth compares intervals with."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from opdscope.core.success import StratumOutcomes

sys.path.append(str(Path(__file__).parents[1] / "bench" / "truth"))
from two_values import OddNodes, chance_of_more, find_odd, held_and_open


def test_odd_nodes_have_one_candidate_that_differs_among_three_strata_or_more():
    success = np.array([[0.9, 0.2, 0.9, 0.0], [0.9, 0.9, 0.2, 0.0], [0.9, 0.2, 0.0, 0.0], [0.9, 0.2, 0.5, 0.9], [0.9, 0.9, 0.9, 0.0]])
    probs = np.array([[0.7, 0.2, 0.1, 0.0], [0.7, 0.2, 0.1, 0.0], [0.7, 0.3, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1], [0.7, 0.2, 0.1, 0.0]])
    tail = np.zeros(probs.shape, dtype=bool)
    tail[:, 2] = True
    # the second differs in its tail, the third has two strata, of the fourth two differ, of the fifth none that counts
    found = find_odd(success, probs, tail)
    assert [found.index.tolist(), found.stratum.tolist(), found.common.tolist(), found.own.tolist()] == [[0], [1], [0.9], [0.2]]


def test_the_chance_is_that_of_binomial_outcomes_under_the_pairs_of_other_questions():
    odd = OddNodes(np.array([0, 2, 3]), np.array([1, 1, 0]), np.array([0.9, 0.5, 0.3]), np.array([0.2, 0.7, 0.6]))
    correct, count = np.array([[5, 1, 2], [0, 0, 0], [3, 2, 1], [1, 4, 0]]), np.array([[6, 3, 3], [1, 1, 1], [6, 3, 3], [3, 9, 3]])
    outcomes = StratumOutcomes(correct, count, np.full((4, 3), np.nan))
    # the first two nodes that are odd belong to one question: each is judged by the third alone, which succeeds more
    assert chance_of_more(odd, outcomes, np.array([0, 0, 0, 1]))[:2] == pytest.approx([1.0, 1.0])
    down, up = (binom.pmf(4, 12, common) * binom.pmf(1, 3, own) for common, own in ((0.9, 0.2), (0.5, 0.7)))
    assert chance_of_more(odd, outcomes, np.array([0, 0, 0, 1]))[2] == pytest.approx(up / (up + down), rel=1e-12)


def test_a_posterior_of_two_values_is_held_at_least_as_often_as_it_says_and_mostly_more_often():
    generator = np.random.default_rng(0)
    chance = generator.uniform(size=100_000)
    more = generator.random(len(chance)) < chance
    held, reaches = held_and_open(chance, more, 0.9)
    # open between .1 and .9; else the right sign has a chance between .9 and 1, in the mean .95
    for found, expected in ((reaches.mean(), 0.8), (held[reaches].mean(), 1.0), (held.mean(), 0.8 + 0.2 * 0.95)):
        assert abs(found - expected) < 4 * np.sqrt(0.25 / len(chance))
    assert held[~reaches].mean() == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / (~reaches).sum()))
