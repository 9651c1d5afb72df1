"""Cosines with what lies within the tail, against every token of it."""

import numpy as np
import pytest
from scipy.special import expit

from opdscope.core.alignment import alignment_score, natural_alignment
from opdscope.core.node_prior import SuccessDraws
from opdscope.core.shortest import shortest_interval
from opdscope.core.within_tail import Push, draw_cosines

NODES, DRAWS, INSIDE = 1500, 200, 4


def vocabulary(seed, slope, strength):
    """Two candidates and four equally likely tokens in the tail, whose success follows the prior."""
    generator = np.random.default_rng(seed)
    probs = np.tile([0.5, 0.3, *[0.05] * INSIDE], (NODES, 1))
    signal = generator.normal(size=probs.shape)
    centre = expit(slope * (signal - np.sum(probs * signal, axis=-1, keepdims=True)))
    return probs, signal, generator.beta(strength * centre, strength * (1 - centre))


def merged(probs, signal):
    """The push as it is stored, with a tail."""
    mean = np.sum(probs * signal, axis=-1, keepdims=True)
    gradient = probs * (signal - mean)

    def strata(values):
        return np.concatenate([values[:, :2], values[:, 2:].mean(axis=1, keepdims=True)], axis=1)

    together = np.concatenate([probs[:, :2], probs[:, 2:].sum(axis=1, keepdims=True)], axis=1)
    squared = np.concatenate([probs[:, :2] ** 2, np.sum(probs[:, 2:] ** 2, axis=1, keepdims=True)], axis=1)
    variance = np.sum(probs * (signal - mean) ** 2, axis=-1)
    is_tail = np.tile([False, False, True], (NODES, 1))
    return Push(together, squared, is_tail, strata(signal), variance, strata(gradient), np.sum(gradient**2, axis=-1)), strata, gradient


@pytest.mark.parametrize("slope", [0.0, 0.6, -0.6])
def test_cosines_of_a_merged_tail_hold_those_of_its_tokens(slope):
    probs, signal, success = vocabulary(0, slope, 20.0)
    push, strata, gradient = merged(probs, signal)
    np.testing.assert_allclose(push.num_tokens, [[1.0, 1.0, INSIDE]] * NODES)
    logs = np.log(probs)
    truths = (
        alignment_score(logs, probs**2, gradient, push.gradient_squared_norm, success),
        natural_alignment(logs, signal, push.signal_variance, success),
    )
    # every stratum's mean success is known: what is left open is the tail's inside
    draws = SuccessDraws(np.tile(strata(success), (DRAWS, 1, 1)), np.full((DRAWS, NODES), slope), np.full((DRAWS, NODES), 20.0))
    found = draw_cosines(push, draws, 1.0, [np.random.default_rng([0, i]) for i in range(NODES)])
    for truth, own in zip(truths, found, strict=True):
        _, low, high = shortest_interval(own, 0.9).T
        # four binomial standard errors are .031; two points for a normal law in place of beta's and a slope that is straight
        assert abs(np.mean((low <= truth) & (truth <= high)) - 0.9) < 0.051
        assert abs(np.mean(own.mean(axis=0) - truth)) < 4 * np.std(own.mean(axis=0) - truth) / np.sqrt(NODES) + 0.01


def test_without_several_tokens_in_the_tail_cosines_are_those_of_the_strata():
    probs, signal, success = np.array([[0.6, 0.4]]), np.array([[1.0, -0.5]]), np.array([[[0.9, 0.2]], [[0.1, 0.4]]])
    mean = np.sum(probs * signal, axis=-1, keepdims=True)
    gradient, variance = probs * (signal - mean), np.sum(probs * (signal - mean) ** 2, axis=-1)
    norm = np.sum(gradient**2, axis=-1)
    push = Push(probs, probs**2, np.array([[False, True]]), signal, variance, gradient, norm)
    draws = SuccessDraws(success, np.ones((2, 1)), np.full((2, 1), 3.0))
    score, natural = draw_cosines(push, draws, 1.0, [np.random.default_rng(0)])
    np.testing.assert_allclose(score, alignment_score(np.log(probs), probs**2, gradient, norm, success), rtol=1e-9)
    np.testing.assert_allclose(natural, natural_alignment(np.log(probs), signal, variance, success), rtol=1e-9)
    same = SuccessDraws(np.full((2, 1, 2), 0.3), np.zeros((2, 1)), np.full((2, 1), np.inf))
    assert np.isnan(draw_cosines(push, same, 1.0, [np.random.default_rng(0)])).all()
