"""Outcomes to success: conventions for what was not sampled, the posterior, and the strength of its prior."""

import numpy as np
import pytest
from scipy import stats

from opdscope.core.success import StratumOutcomes, mean_success, posterior_success, prior_mean, prior_strength
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
    draws = posterior_success(observed, np.array(0.4), 3.0, 50, np.random.default_rng(0))
    np.testing.assert_array_equal(draws[:, :2], np.tile([1.0, 0.0], (50, 1)))
    assert draws[:, 2].std() > 0


def test_a_node_without_any_verdict_is_undefined():
    assert np.isnan(mean_success(np.array([0.5, 0.5]), outcomes([0, 0], [0, 0]))).all()
    # and neighbours in the same array are not harmed
    found = mean_success(np.array([[0.5, 0.5], [0.5, 0.5]]), outcomes([[0, 0], [1, 0]], [[0, 0], [1, 1]]))
    np.testing.assert_array_equal(found, [[NAN, NAN], [1.0, 0.0]])


def test_prior_mean_stays_strictly_inside_and_defaults_to_one_half():
    probs = np.array([0.9, 0.1])
    for correct in ([0, 0], [50, 50]):
        assert 0.0 < prior_mean(probs, outcomes(correct, [50, 50])) < 1.0
    assert prior_mean(probs, outcomes([0, 0], [0, 0])) == 0.5
    assert prior_mean(probs, outcomes([0, 0], [0, 0], [1.0, 0.0])) == 0.5
    # weights are the student's among the sampled: .9 · 3.5/5 + .1 · .5/5
    assert prior_mean(probs, outcomes([3, 0], [4, 4])) == pytest.approx(0.64, rel=1e-15)


@pytest.mark.parametrize(("correct", "verified"), [(0, 4), (3, 4), (20, 64)])
def test_posterior_draws_follow_the_beta_distribution(correct, verified):
    num_draws = 20_000
    draws = posterior_success(outcomes([correct], [verified]), np.array(0.3), 5.0, num_draws, np.random.default_rng(1))[:, 0]
    beta = stats.beta(5.0 * 0.3 + correct, 5.0 * 0.7 + verified - correct)
    # share below each quantile: binomial, four standard errors
    below = np.mean(draws[:, None] < beta.ppf(PROBABILITIES), axis=0)
    assert np.all(np.abs(below - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / num_draws))


def test_an_unsampled_stratum_keeps_the_priors_full_uncertainty():
    draws = posterior_success(outcomes([0, 90], [0, 100]), np.array(0.3), 5.0, 20_000, np.random.default_rng(2))
    below = np.mean(draws[:, :1] < stats.beta(1.5, 3.5).ppf(PROBABILITIES), axis=0)
    assert np.all(np.abs(below - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / 20_000))
    assert draws[:, 0].std() > 4 * draws[:, 1].std()


def test_draws_have_a_leading_axis_and_depend_on_the_generator_alone():
    observed = simulated(4.0, 32, num_nodes=5)
    first, second = (posterior_success(observed, np.full(5, 0.5), 4.0, 7, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (7, 5, 8)
    np.testing.assert_array_equal(first, second)
    assert np.abs(np.corrcoef(first[:, 0, 0], first[:, 0, 1])[0, 1]) < 1


@pytest.mark.parametrize("budget", [32, 128, 512])
@pytest.mark.parametrize("strength", [1.0, 4.0, 20.0, 100.0])
def test_prior_strength_is_recovered(strength, budget):
    observed = simulated(strength, budget)
    centre = prior_mean(np.full(observed.num_correct.shape, 1 / 8), observed)
    found = prior_strength(centre, observed)
    # 2,400 strata. The information on log κ falls as outcomes per stratum fall behind κ: with 4 per stratum and κ = 100 the outcome's
    # variance differs from the binomial's by 3 %, as much as its own standard error, so there only the order of magnitude is asked for
    factor = 4.0 if strength > 4 * budget / 8 else 1.35
    assert strength / factor < found < strength * factor


def test_prior_strength_is_not_inflated_by_centring_on_the_same_outcomes():
    # 20 is the truth; the likelihood given each node's own estimate, in place of the integral, finds 50 or more
    observed = simulated(20.0, 32, seed=1, num_nodes=1000)
    centre = prior_mean(np.full(observed.num_correct.shape, 1 / 8), observed)
    plug_in = {
        strength: stats.betabinom.logpmf(observed.num_correct, 4, strength * centre[:, None], strength * (1 - centre[:, None])).sum()
        for strength in (20.0, 50.0)
    }
    assert plug_in[50.0] > plug_in[20.0]
    # 8,000 strata of 4 outcomes: standard error of log κ about .15, three of them either way
    assert 12.0 < prior_strength(centre, observed) < 33.0


def test_prior_strength_ignores_strata_without_information_and_has_a_default():
    observed = simulated(4.0, 64)
    centre = prior_mean(np.full(observed.num_correct.shape, 1 / 8), observed)

    def widened(correct, verified, terminal):
        def pad(values, filler):
            return np.concatenate([values, np.full((len(values), 1), filler)], axis=1)

        return StratumOutcomes(pad(observed.num_correct, correct), pad(observed.num_verified, verified), pad(observed.terminal, terminal))

    plain = prior_strength(centre, observed)
    assert prior_strength(centre, widened(0, 0, NAN)) == pytest.approx(plain, rel=1e-12)
    assert prior_strength(centre, widened(0, 0, 1.0)) == pytest.approx(plain, rel=1e-12)
    assert prior_strength(np.array([0.5]), outcomes([[0, 0]], [[0, 0]])) == 2.0


def test_prior_strength_rises_with_agreement():
    verified = np.full((50, 4), 20)
    value = np.linspace(2, 18, 50).astype(int)[:, None]
    agree = outcomes(np.broadcast_to(value, (50, 4)), verified)
    differ = outcomes(np.tile([0, 20, 0, 20], (50, 1)), verified)
    centre = np.full(50, 0.5)
    assert prior_strength(centre, agree) > 50
    assert prior_strength(centre, differ) < 0.5


def test_outcomes_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"differ in shape: \(2,\), \(3,\), \(2,\)"):
        StratumOutcomes(np.zeros(2, dtype=int), np.zeros(3, dtype=int), np.zeros(2))
