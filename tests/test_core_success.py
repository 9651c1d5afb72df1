"""Outcomes to success: conventions for what was not sampled, the posterior, and the strength of its prior."""

import numpy as np
import pytest
from scipy import stats

from opdscope.core.success import _STRENGTHS, StratumOutcomes, draw_priors, mean_success, posterior_success, success_prior
from opdscope.errors import ShapeError

NAN = np.nan
PROBABILITIES = np.linspace(0.05, 0.95, 19)


def outcomes(correct, verified, terminal=None):
    correct, verified = np.array(correct), np.array(verified)
    return StratumOutcomes(correct, verified, np.full(correct.shape, NAN) if terminal is None else np.array(terminal))


def simulated(strength, budget, seed=0, num_nodes=300, strata=8):
    """Outcomes of nodes whose strata succeed as Beta(κ m, κ (1 - m)), m anywhere between 0 and 1."""
    generator = np.random.default_rng(seed)
    value = generator.beta(2, 2, size=(num_nodes, 1))
    success = generator.beta(strength * value, strength * (1 - value), size=(num_nodes, strata))
    verified = np.full(success.shape, budget // strata)
    return outcomes(generator.binomial(verified, success), verified)


def test_mean_success_is_the_share_where_sampled():
    found = mean_success(np.array([0.5, 0.3, 0.2]), outcomes([3, 0, 2], [4, 5, 2]))
    np.testing.assert_array_equal(found, [0.75, 0.0, 1.0])


def test_unsampled_strata_take_the_value_of_the_others_and_so_have_no_advantage():
    probs = np.array([0.5, 0.3, 0.2])
    found = mean_success(probs, outcomes([3, 0, 0], [4, 5, 0]))
    value = 0.5 * 0.75 / 0.8
    np.testing.assert_allclose(found, [0.75, 0.0, value], rtol=1e-15)
    assert found[2] - np.dot(probs, found) == pytest.approx(0.0, abs=1e-15)


def test_terminal_strata_are_exact_in_mean_and_draws():
    observed = outcomes([0, 0, 1], [0, 0, 2], [1.0, 0.0, NAN])
    np.testing.assert_array_equal(mean_success(np.array([0.2, 0.3, 0.5]), observed), [1.0, 0.0, 0.5])
    draws = posterior_success(observed, np.array(0.4), np.array(3.0), 50, np.random.default_rng(0))
    np.testing.assert_array_equal(draws[:, :2], np.tile([1.0, 0.0], (50, 1)))
    assert draws[:, 2].std() > 0


def test_a_node_without_any_verdict_is_undefined():
    assert np.isnan(mean_success(np.array([0.5, 0.5]), outcomes([0, 0], [0, 0]))).all()
    # and neighbours in the same array are not harmed
    found = mean_success(np.array([[0.5, 0.5], [0.5, 0.5]]), outcomes([[0, 0], [1, 0]], [[0, 0], [1, 1]]))
    np.testing.assert_array_equal(found, [[NAN, NAN], [1.0, 0.0]])


@pytest.mark.parametrize(("correct", "verified"), [(0, 4), (3, 4), (20, 64)])
def test_posterior_draws_follow_the_beta_distribution(correct, verified):
    num_draws = 20_000
    draws = posterior_success(outcomes([correct], [verified]), np.array(0.3), np.array(5.0), num_draws, np.random.default_rng(1))[:, 0]
    beta = stats.beta(5.0 * 0.3 + correct, 5.0 * 0.7 + verified - correct)
    # share below each quantile: binomial, four standard errors
    below = np.mean(draws[:, None] < beta.ppf(PROBABILITIES), axis=0)
    assert np.all(np.abs(below - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / num_draws))


def test_an_unsampled_stratum_keeps_the_priors_full_uncertainty():
    draws = posterior_success(outcomes([0, 90], [0, 100]), np.array(0.3), np.array(5.0), 20_000, np.random.default_rng(2))
    below = np.mean(draws[:, :1] < stats.beta(1.5, 3.5).ppf(PROBABILITIES), axis=0)
    assert np.all(np.abs(below - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / 20_000))
    assert draws[:, 0].std() > 4 * draws[:, 1].std()


def test_draws_have_a_leading_axis_and_depend_on_the_generator_alone():
    observed = simulated(4.0, 32, num_nodes=5)
    first, second = (posterior_success(observed, np.full(5, 0.5), np.full(5, 4.0), 7, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (7, 5, 8)
    np.testing.assert_array_equal(first, second)
    assert np.abs(np.corrcoef(first[:, 0, 0], first[:, 0, 1])[0, 1]) < 1


def typical_strength(prior):
    """Geometric mean over the finite strengths."""
    return float(np.exp(np.sum(prior.strengths[:-1] * np.log(_STRENGTHS)) / np.sum(prior.strengths[:-1])))


@pytest.mark.parametrize("budget", [128, 512])
@pytest.mark.parametrize("strength", [1.0, 4.0, 20.0])
def test_the_strength_of_the_prior_is_recovered(strength, budget):
    prior = success_prior(simulated(strength, budget))
    # the grid has a step of 1.78; the 14 pseudo-nodes among 300 are even in log κ and draw the mean towards the middle of the grid, 9.5:
    # 4.5 % of |log(κ / 9.5)| <= 2.3, a tenth. A mixture's own spread adds as much as a step
    assert strength / 1.8 < typical_strength(prior) < strength * 1.8
    assert prior.strengths.sum() == pytest.approx(1.0)
    assert prior.values.sum() == pytest.approx(1.0)


def test_nodes_without_a_range_are_told_from_nodes_with_one():
    generator = np.random.default_rng(0)
    value = generator.beta(2, 2, size=(600, 1))
    differing = np.arange(600) < 200
    success = np.where(differing[:, None], generator.beta(1.0, 1.0, size=(600, 6)), value)
    verified = np.full(success.shape, 24)
    observed = outcomes(generator.binomial(verified, success), verified)
    prior = success_prior(observed)
    # strengths from 100 on are not to be told from equality by 24 outcomes: together they are the share without a range, 2/3
    assert abs(prior.strengths[_STRENGTHS.searchsorted(60) :].sum() - 2 / 3) < 0.08
    drawn = draw_priors(prior, observed, 50, [np.random.default_rng(i) for i in range(600)])
    # six strata of 24 outcomes that succeed equally often are rare among those drawn evenly
    assert drawn.differs[differing].mean() > 0.95
    assert drawn.differs[~differing].mean() < 0.75
    # nodes with a range are hardly shrunk: the posterior of κ there is near the truth, 2
    assert np.median(drawn.strength[:, differing]) < 6


def test_the_prior_ignores_strata_without_information_and_is_even_without_any():
    observed = simulated(4.0, 64)

    def widened(correct, verified, terminal):
        def pad(values, filler):
            return np.concatenate([values, np.full((len(values), 1), filler)], axis=1)

        return StratumOutcomes(pad(observed.num_correct, correct), pad(observed.num_verified, verified), pad(observed.terminal, terminal))

    plain = success_prior(observed)
    for other in (widened(0, 0, NAN), widened(0, 0, 1.0)):
        np.testing.assert_allclose(success_prior(other).strengths, plain.strengths, rtol=1e-12)
    nothing = success_prior(outcomes([[0, 0]], [[0, 0]]))
    np.testing.assert_allclose(nothing.strengths, 1 / len(nothing.strengths), rtol=1e-12)
    np.testing.assert_allclose(nothing.values, 1 / len(nothing.values), rtol=1e-12)


def test_draws_of_a_nodes_prior_follow_bayes_rule():
    observed, num_draws = outcomes([[9, 3]], [[10, 10]]), 20_000
    prior = success_prior(simulated(4.0, 64))
    drawn = draw_priors(prior, observed, num_draws, [np.random.default_rng(0)])
    weights = np.zeros((len(_STRENGTHS), 25))
    for i, strength in enumerate(_STRENGTHS):
        for k, value in enumerate((np.arange(25) + 0.5) / 25):
            chance = stats.betabinom.pmf([9, 3], 10, strength * value, strength * (1 - value)).prod()
            weights[i, k] = prior.strengths[i] * prior.values[k] * chance
    weights /= weights.sum()
    found = np.array([np.mean(np.isclose(drawn.strength, strength)) for strength in _STRENGTHS])
    # binomial, four standard errors, and room for an expected count of zero
    assert np.all(np.abs(found - weights.sum(axis=1)) < 4 * np.sqrt(weights.sum(axis=1) / num_draws) + 1e-3)
    assert abs(drawn.mean.mean() - weights.sum(axis=0) @ ((np.arange(25) + 0.5) / 25)) < 4 * 0.3 / np.sqrt(num_draws)
    known = draw_priors(prior, outcomes([[9, 3]], [[10, 10]], [[NAN, 1.0]]), 1, [np.random.default_rng(0)])
    assert known.differs.tolist() == [1.0]


def test_the_strength_rises_with_agreement():
    verified = np.full((50, 4), 20)
    value = np.linspace(2, 18, 50).astype(int)[:, None]
    agree, differ = outcomes(np.broadcast_to(value, (50, 4)), verified), outcomes(np.tile([0, 20, 0, 20], (50, 1)), verified)
    assert success_prior(agree).strengths[_STRENGTHS.searchsorted(50) :].sum() > 0.5
    assert success_prior(differ).strengths[:2].sum() > 0.5


def test_outcomes_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"differ in shape: \(2,\), \(3,\), \(2,\)"):
        StratumOutcomes(np.zeros(2, dtype=int), np.zeros(3, dtype=int), np.zeros(2))
