"""What sampling adds to the squared length of an estimated ideal gradient, by enumeration and by simulation."""

import numpy as np

from opdscope.core.alignment import ideal_norm_noise, ideal_squared_norm
from opdscope.core.success import StratumOutcomes, mean_success, success_noise


def node(seed, strata=6):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.full(strata, 0.7))
    squared = probs**2
    squared[-1] *= 0.1  # the tail: many tokens share its probability
    return generator, probs, squared, generator.uniform(size=strata)


def test_noise_formula_is_the_variance_of_each_strata_advantage():
    _, probs, squared, variance = node(0)
    # Var(Ŝ_j - V̂) from the linear map Ŝ → Ŝ - V̂ itself
    centring = np.eye(6) - np.outer(np.ones(6), probs)
    expected = np.sum(squared * np.diag(centring @ np.diag(variance) @ centring.T))
    np.testing.assert_allclose(ideal_norm_noise(np.log(probs), squared, variance), expected, rtol=1e-12)


def test_success_noise_is_unbiased_for_the_variance_of_a_share():
    generator = np.random.default_rng(1)
    for chance, count in [(0.1, 2), (0.5, 3), (0.9, 20)]:
        correct = generator.binomial(count, chance, size=200_000)
        noise = success_noise(StratumOutcomes(correct, np.full(200_000, count), np.full(200_000, np.nan)))
        standard_error = noise.std() / np.sqrt(200_000)
        # four standard errors: wrong by chance once in 16,000
        assert abs(noise.mean() - chance * (1 - chance) / count) < 4 * standard_error


def test_success_noise_conventions():
    outcomes = StratumOutcomes(np.array([1, 0, 1, 0]), np.array([1, 0, 3, 0]), np.array([np.nan, np.nan, np.nan, 1.0]))
    np.testing.assert_allclose(success_noise(outcomes), [0.25, 0.0, (1 / 3) * (2 / 3) / 2, 0.0], rtol=1e-15)


def test_squared_norm_minus_noise_is_unbiased_and_the_plug_in_is_not():
    generator, probs, squared, success = node(2)
    counts, repeats = np.array([2, 3, 5, 8, 2, 4]), 100_000
    correct = generator.binomial(counts, success, size=(repeats, 6))
    outcomes = StratumOutcomes(correct, np.broadcast_to(counts, correct.shape), np.full(correct.shape, np.nan))
    logprobs = np.broadcast_to(np.log(probs), correct.shape)
    plug_in = ideal_squared_norm(logprobs, squared, mean_success(probs, outcomes))
    corrected = plug_in - ideal_norm_noise(logprobs, squared, success_noise(outcomes))
    truth = ideal_squared_norm(np.log(probs), squared, success)
    standard_error = corrected.std() / np.sqrt(repeats)
    assert abs(corrected.mean() - truth) < 4 * standard_error  # wrong by chance once in 16,000
    # the test can tell: without the correction it would fail by far
    assert plug_in.mean() - truth > 40 * standard_error


def test_terminal_strata_add_no_noise_of_their_own():
    probs, squared = np.array([0.6, 0.4]), np.array([0.36, 0.16])
    outcomes = StratumOutcomes(np.array([0, 2]), np.array([0, 4]), np.array([1.0, np.nan]))
    # only the second stratum is estimated, with v = 1/12; Ŝ_1 - V̂ has variance .4² v, Ŝ_2 - V̂ has .6² v
    expected = (0.36 * 0.16 + 0.16 * 0.36) / 12
    np.testing.assert_allclose(ideal_norm_noise(np.log(probs), squared, success_noise(outcomes)), expected, rtol=1e-12)
