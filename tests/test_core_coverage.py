"""Intervals hold what they promise: simulated nodes and questions with known truth."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtri

from opdscope.core.aggregation import clustered_mean, clustered_statistic, ratio
from opdscope.core.alignment import (
    advantage_variance,
    alignment_score,
    gain,
    gain_variance,
    natural_alignment,
    natural_gain,
    teacher_advantage,
)
from opdscope.core.backup import back_up, interval_variance, no_links
from opdscope.core.node_prior import NodeLikelihood, NodeOutcomes, draw_success, fit_node_prior
from opdscope.core.sampling import allocate_continuations
from opdscope.core.shortest import shortest_interval
from opdscope.core.signal_prior import scaled_signal
from opdscope.core.success import StratumOutcomes, draw_priors, posterior_success, success_prior

NUM_NODES, NUM_STRATA, NUM_DRAWS, LEVEL = 1200, 8, 199, 0.9


@dataclass(frozen=True)
class Nodes:
    """Nodes with known success, a teacher, and outcomes of continuations spent as the pipeline spends them."""

    probs: np.ndarray
    teacher: np.ndarray
    success: np.ndarray
    outcomes: StratumOutcomes

    def measures(self, success):
        """Everything that gets an interval from draws, in the order of NAMES."""
        logprobs, signal = np.log(self.probs), np.log(self.teacher / self.probs)
        centred = signal - np.sum(self.probs * signal, axis=-1, keepdims=True)
        gradient = self.probs * centred
        variance = np.sum(self.probs * centred**2, axis=-1)
        return np.stack(
            [
                alignment_score(logprobs, self.probs**2, gradient, np.sum(gradient**2, axis=-1), success),
                natural_alignment(logprobs, signal, variance, success),
                gain(logprobs, gradient, success),
                natural_gain(logprobs, signal, success),
                teacher_advantage(logprobs, self.teacher, success),
            ]
        )


def posterior_draws(nodes, outcomes, factor=1.0):
    """Draws given some outcomes under the prior that all outcomes tell, its strengths multiplied by a factor."""
    sources = [np.random.default_rng([2, node]) for node in range(NUM_NODES)]
    drawn, generator = draw_priors(success_prior(nodes.outcomes), outcomes, NUM_DRAWS, sources), np.random.default_rng(1)
    pairs = zip(drawn.mean, drawn.strength, strict=True)
    return np.stack([posterior_success(outcomes, mean, factor * strength, 1, generator)[0] for mean, strength in pairs])


NAMES = ("alignment score", "natural alignment", "gain", "natural gain", "teacher advantage")


def simulate(strength, budget, seed):
    generator = np.random.default_rng(seed)
    probs = np.clip(generator.dirichlet(np.full(NUM_STRATA, 0.5), size=NUM_NODES), 1e-4, None)
    probs /= probs.sum(axis=-1, keepdims=True)
    teacher = probs * np.exp(generator.normal(size=probs.shape))
    teacher /= teacher.sum(axis=-1, keepdims=True)
    value = generator.beta(2, 2, size=(NUM_NODES, 1))
    success = generator.beta(strength * value, strength * (1 - value), size=probs.shape)
    everywhere = np.ones(NUM_STRATA, dtype=bool)
    counts = np.array([allocate_continuations(share, budget, 3, everywhere) for share in 0.5 * probs + 0.5 * teacher])
    return Nodes(probs, teacher, success, StratumOutcomes(generator.binomial(counts, success), counts, np.full(counts.shape, np.nan)))


def coverage(nodes, draws):
    """Share of nodes whose true measures lie between the 10th smallest and the 10th largest of 199 draws: 180 of 200 gaps, 90 %."""
    ordered = np.sort(nodes.measures(draws), axis=1)  # a draw without success range is NaN and sorts to the end
    low, high, truth = ordered[:, 9], ordered[:, 189], nodes.measures(nodes.success)
    return np.mean((low <= truth) & (truth <= high), axis=1)


@pytest.mark.parametrize("budget", [32, 128, 512])
@pytest.mark.parametrize("strength", [4.0, 20.0, 100.0])
def test_posterior_intervals_cover_as_often_as_they_say(strength, budget):
    nodes = simulate(strength, budget, seed=budget)
    covered = coverage(nodes, posterior_draws(nodes, nodes.outcomes))
    # 1,200 nodes: the binomial standard error of a 90 % coverage is .0087, three of them are .026. Two points more below, since the
    # prior is estimated (METHOD 5.3 found 88-89 %), and as many above where outcomes are too few to tell strength 100 from strata that do not
    # differ: draws are given that they do
    assert np.all((covered > 0.854) & (covered < (0.946 if strength < 10 * budget / NUM_STRATA else 0.966))), dict(
        zip(NAMES, covered.round(3), strict=True)
    )


@pytest.mark.parametrize("budget", [16, 32, 128])
@pytest.mark.parametrize("knows", [False, True])
def test_intervals_of_gains_need_no_prior_and_hold_whatever_the_teacher_knows(budget, knows):
    nodes = simulate(4.0, budget, seed=budget)
    logprobs, links = np.log(nodes.probs), no_links(NUM_NODES)
    value = np.sum(nodes.probs * nodes.success, axis=-1, keepdims=True)
    teacher = nodes.probs * np.exp(2 * (nodes.success - value)) if knows else nodes.teacher
    teacher = teacher / teacher.sum(axis=-1, keepdims=True)
    signal = np.log(teacher / nodes.probs)
    found, noise = back_up(nodes.probs, nodes.outcomes, links).mean, interval_variance(nodes.probs, nodes.outcomes, links)
    for estimate, variance, truth in (
        (natural_gain(logprobs, signal, found), gain_variance(logprobs, signal, noise), natural_gain(logprobs, signal, nodes.success)),
        (
            teacher_advantage(logprobs, teacher, found),
            advantage_variance(logprobs, teacher, noise),
            teacher_advantage(logprobs, teacher, nodes.success),
        ),
    ):
        covered = np.mean(np.abs(estimate - truth) <= ndtri(0.5 + LEVEL / 2) * np.sqrt(variance))
        # three binomial standard errors are .026; two points more either way for sums that a few strata dominate
        assert 0.9 - 0.046 < covered < 0.9 + 0.046


def test_coverage_experiment_catches_a_prior_three_times_too_strong():
    nodes = simulate(20.0, 32, seed=32)
    assert np.all(coverage(nodes, posterior_draws(nodes, nodes.outcomes, 3.0))[2:] < 0.84)


def knowing(strength, budget, slope):
    """Nodes at which the teacher's signal is so many times the advantage, plus noise."""
    nodes = simulate(strength, budget, seed=budget)
    advantage = nodes.success - np.sum(nodes.probs * nodes.success, axis=-1, keepdims=True)
    teacher = nodes.probs * np.exp(slope * advantage + np.random.default_rng(5).normal(scale=0.5, size=nodes.probs.shape))
    return Nodes(nodes.probs, teacher / teacher.sum(axis=-1, keepdims=True), nodes.success, nodes.outcomes)


@pytest.mark.parametrize("budget", [32, 128])
@pytest.mark.parametrize("slope", [-2.0, 0.0, 4.0])
def test_cosines_cover_whatever_the_teacher_knows(slope, budget):
    nodes = knowing(4.0, budget, slope)
    scaled, _ = scaled_signal(nodes.probs, np.log(nodes.teacher / nodes.probs), nodes.outcomes)
    tokens = np.ones(scaled.shape)
    likelihood = NodeLikelihood.of(NodeOutcomes.of(nodes.outcomes, tokens, nodes.probs, np.zeros(scaled.shape, dtype=bool)), scaled)
    prior = fit_node_prior(likelihood)
    against, along = prior.slopes[:4].sum(), prior.slopes[-4:].sum()
    assert abs(along - against) < 0.1 if slope == 0 else (along - against) * slope > 0
    sources = [np.random.default_rng([3, node]) for node in range(NUM_NODES)]
    draws = draw_success(prior, likelihood, nodes.outcomes, tokens, NUM_DRAWS, sources).success
    exchangeable = posterior_draws(nodes, nodes.outcomes)
    pairs = zip(nodes.measures(draws)[:2], nodes.measures(exchangeable)[:2], nodes.measures(nodes.success)[:2], strict=True)
    for name, (own, without, truth) in zip(NAMES[:2], pairs, strict=True):
        found = shortest_interval(own, LEVEL)
        covered = np.mean((found[:, 1] <= truth) & (truth <= found[:, 2]))
        # three binomial standard errors are .026; the prior takes the slope for the same at all values, where this teacher follows success itself,
        # whose logits are steeper towards 0 and 1: with a good teacher and 128 continuations intervals are up to three points too
        # wide, and with 32 the prior, learned anew, moves coverage by two points from run to run (the deviation over eight seeds)
        assert 0.9 - 0.026 < covered < 0.9 + 0.026 + (0.03 if slope > 0 else 0.0), (name, covered)
        if slope != 0:
            assert abs(np.mean(found[:, 0] - truth)) < 0.5 * abs(np.mean(np.nanmean(without, axis=0) - truth))


@pytest.mark.parametrize("num_questions", [5, 12, 40])
def test_interval_of_a_mean_over_questions_covers_as_often_as_it_says(num_questions):
    generator, repeats = np.random.default_rng(num_questions), 3000
    # heavier tails than the normal distribution, as gains have: t with 5 degrees of freedom
    values = 0.3 + generator.standard_t(5, size=(repeats, num_questions))
    estimates = [clustered_mean(row, LEVEL) for row in values]
    covered = np.mean([estimate.low <= 0.3 <= estimate.high for estimate in estimates])
    # binomial, four standard errors of .0055; t intervals of symmetric heavy tails err on the safe side by up to a point
    assert 0.9 - 0.022 < covered < 0.9 + 0.032


@pytest.mark.parametrize("num_questions", [15, 40])
def test_jackknife_interval_of_a_ratio_covers_as_often_as_it_says(num_questions):
    generator, repeats = np.random.default_rng(num_questions), 1500
    # the Hájek mean of a question: a sum of weights that varies, and a numerator that depends on it
    weights = generator.gamma(4.0, size=(repeats, num_questions))
    numerators = weights * (0.2 + 0.1 * (weights - 4.0)) + generator.normal(size=weights.shape)
    truth = (4.0 * 0.2 + 0.1 * 4.0) / 4.0  # E[w · (.2 + .1 (w - 4))] / E[w], and the variance of w is 4
    estimates = [clustered_statistic(np.stack(pair, axis=1), ratio, LEVEL) for pair in zip(numerators, weights, strict=True)]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    # binomial, four standard errors of .0078; a ratio of skewed sums with 15 questions loses another point or two
    assert 0.9 - 0.031 - 0.02 < covered < 0.9 + 0.031
