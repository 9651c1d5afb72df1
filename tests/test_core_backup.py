"""Success backed up along a path, against paths on which every success is known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from opdscope.core.alignment import ideal_norm_noise, ideal_squared_norm, natural_gain
from opdscope.core.backup import PathLinks, back_up, backed_up_outcomes, backed_up_posterior, interval_variance
from opdscope.core.sampling import allocate_continuations
from opdscope.core.success import (
    StratumOutcomes,
    draw_priors,
    mean_success,
    posterior_success,
    success_noise,
    success_prior,
)
from opdscope.errors import ShapeError

NAN, TAKEN = np.nan, 0
REPEATS = 40_000


@dataclass(frozen=True)
class Walk:
    """One path with known successes, the path's token in stratum 0 of every node; the last node leads nowhere."""

    probs: np.ndarray
    success: np.ndarray  # of the path's token only at the last node; elsewhere it follows
    leaving: np.ndarray  # success of what leaves after each node but the last
    stay_prob: np.ndarray

    def truth(self):
        success = self.success.copy()
        for k in reversed(range(len(self.leaving))):
            value = self.probs[k + 1] @ success[k + 1]
            success[k, TAKEN] = self.stay_prob[k] * value + (1 - self.stay_prob[k]) * self.leaving[k]
        return success

    def measured(self, counts, repeats=REPEATS, seed=0):
        """Outcomes and links of that many independent copies of the path, every node with the same numbers of continuations."""
        generator, truth = np.random.default_rng(seed), self.truth()
        length = len(self.probs)
        correct = generator.binomial(counts, truth, size=(repeats, *truth.shape))
        staying, staying_correct = np.zeros((2, repeats, length), dtype=np.int64)
        for k in range(length - 1):
            staying[:, k] = generator.binomial(counts[TAKEN], self.stay_prob[k], size=repeats)
            staying_correct[:, k] = generator.binomial(staying[:, k], self.probs[k + 1] @ truth[k + 1])
            left = generator.binomial(counts[TAKEN] - staying[:, k], self.leaving[k])
            correct[:, k, TAKEN] = staying_correct[:, k] + left
        following = np.arange(repeats * length) + 1
        following[length - 1 :: length] = -1
        stay_prob = np.tile([*self.stay_prob, 1.0], repeats)
        links = PathLinks(following, np.full(repeats * length, TAKEN), staying.ravel(), staying_correct.ravel(), stay_prob)
        flat = correct.reshape(-1, truth.shape[1])
        outcomes = StratumOutcomes(flat, np.broadcast_to(counts, flat.shape), np.full(flat.shape, NAN))
        return np.tile(self.probs, (repeats, 1)), outcomes, links

    def per_node(self, values):
        return values.reshape(-1, *self.probs.shape)


def walk(*stay_prob):
    """As many nodes as there are staying probabilities, and one more. What leaves fares differently from what stays."""
    probs = np.array([[0.6, 0.3, 0.1], [0.8, 0.15, 0.05], [0.5, 0.3, 0.2]])[-len(stay_prob) - 1 :]
    success = np.array([[NAN, 0.2, 0.7], [NAN, 0.4, 0.1], [0.9, 0.6, 0.3]])[-len(stay_prob) - 1 :]
    return Walk(probs, success, np.array([0.3, 0.25])[-len(stay_prob) :], np.array(stay_prob))


WALKS = [walk(0.02), walk(0.5), walk(0.97), walk(0.6, 0.4), walk(0.97, 0.97), walk(0.03, 0.9), walk(0.9, 0.03)]
COUNTS = [np.array([3, 3, 3]), np.array([20, 8, 4])]


def standard_errors(values, truth):
    """Distance of the mean of independent repetitions from the truth, in standard errors; the largest over nodes and strata."""
    return np.max(np.abs(np.mean(values, axis=0) - truth) / (np.std(values, axis=0) / np.sqrt(len(values))))


# 4.5 standard errors: one of the 108 means of all walks lies beyond by chance for one seed in 1,400
@pytest.mark.parametrize("counts", COUNTS, ids=["n=3", "n=20"])
@pytest.mark.parametrize("path", WALKS, ids=lambda path: str(path.stay_prob))
def test_backed_up_success_is_unbiased(path, counts):
    found = back_up(*path.measured(counts))
    assert standard_errors(path.per_node(found.mean), path.truth()) < 4.5


def leavers_counted_as_arrivals(probs, outcomes, links):
    return back_up(probs, outcomes, replace(links, num_staying=outcomes.num_verified[:, 0], num_staying_correct=outcomes.num_correct[:, 0]))


def successes_of_arrivals_credited_to_leavers(probs, outcomes, links):
    return back_up(probs, outcomes, replace(links, num_staying_correct=np.zeros_like(links.num_staying)))


@pytest.mark.parametrize("wrong", [leavers_counted_as_arrivals, successes_of_arrivals_credited_to_leavers])
@pytest.mark.parametrize("path", [walk(0.5), walk(0.6, 0.4)], ids=["two nodes", "three nodes"])
def test_that_test_can_tell(path, wrong):
    """The same distance of an estimator that is off: leavers go to the next node too, or arrivals' successes are credited to leavers."""
    assert standard_errors(path.per_node(wrong(*path.measured(COUNTS[0])).mean), path.truth()) > 30


def test_the_next_nodes_value_alone_is_not_the_success():
    path = walk(0.5)
    probs, outcomes, links = path.measured(COUNTS[0])
    value = np.sum(path.probs[1] * path.per_node(back_up(probs, outcomes, links).mean)[:, 1], axis=-1)
    assert standard_errors(value, path.truth()[0, TAKEN]) > 30


@pytest.mark.parametrize("counts", COUNTS, ids=["n=3", "n=20"])
@pytest.mark.parametrize("path", WALKS, ids=lambda path: str(path.stay_prob))
def test_the_variance_is_right_on_average(path, counts):
    found = back_up(*path.measured(counts, seed=1))
    excess = (found.mean - np.tile(path.truth(), (REPEATS, 1))) ** 2 - found.variance
    assert standard_errors(path.per_node(excess), 0.0) < 4.5  # as many comparisons as above


def test_the_squared_ideal_gradient_is_unbiased_after_correction_with_that_variance():
    path = walk(0.9, 0.9)
    probs, outcomes, links = path.measured(COUNTS[0], seed=2)
    found = back_up(probs, outcomes, links)
    plug_in = ideal_squared_norm(np.log(probs), probs**2, found.mean)
    corrected = plug_in - ideal_norm_noise(np.log(probs), probs**2, found.variance)
    truth = ideal_squared_norm(np.log(path.probs), path.probs**2, path.truth())
    assert standard_errors(corrected.reshape(-1, 3), truth) < 4.0
    # the test can tell: the variance of the shares alone takes too much away
    old = plug_in - ideal_norm_noise(np.log(probs), probs**2, success_noise(outcomes))
    assert standard_errors(old.reshape(-1, 3), truth) > 15


def test_noise_shrinks_where_most_continuations_arrive_and_grows_nowhere():
    # one node more of as many continuations halves the noise, two leave a third, and what the last node's strata differ by is no noise at all
    for path, most in [(walk(0.97), 0.5), (walk(0.97, 0.97), 0.34), (walk(0.02), 1.0), (walk(0.03, 0.9), 1.0)]:
        probs, outcomes, links = path.measured(COUNTS[1], seed=3)
        backed_up, plain = (path.per_node(m)[:, 0, TAKEN] for m in (back_up(probs, outcomes, links).mean, mean_success(probs, outcomes)))
        # a variance of 40,000 draws is known to .7 %, the square root of 2 / 40,000
        assert np.var(backed_up) / np.var(plain) < most * (1 + 3 * 0.007)


def test_a_deterministic_step_takes_the_next_nodes_value_with_the_arrivals_samples():
    outcomes = StratumOutcomes(np.array([[6], [1]]), np.array([[10], [10]]), np.full((2, 1), NAN))
    links = PathLinks(np.array([1, -1]), np.array([0, -1]), np.array([10, 0]), np.array([6, 0]), np.ones(2))
    found = back_up(np.ones((2, 1)), outcomes, links)
    # ten samples each: the mean of .6 and .1, with a quarter of the sum of the variances
    np.testing.assert_allclose(found.mean, [[0.35], [0.1]], rtol=1e-15)
    np.testing.assert_allclose(found.variance, [[(0.24 / 9 + 0.09 / 9) / 4], [0.09 / 9]], rtol=1e-15)


def linked(correct, verified, staying, staying_correct, terminal=None):
    """Two nodes of two strata each, linked by the first stratum."""
    correct, verified = np.array(correct), np.array(verified)
    outcomes = StratumOutcomes(correct, verified, np.full(correct.shape, NAN) if terminal is None else np.array(terminal))
    links = PathLinks(np.array([1, -1]), np.array([0, -1]), np.array([staying, 0]), np.array([staying_correct, 0]), np.array([0.5, 1.0]))
    return np.full((2, 2), 0.5), outcomes, links


@pytest.mark.parametrize(
    "case",
    [linked([[0, 2], [3, 1]], [[0, 4], [4, 4]], 0, 0), linked([[2, 2], [0, 0]], [[4, 4], [0, 0]], 3, 2)],
    ids=["no verdict at the path's token", "no verdict at the next node"],
)
def test_without_verdicts_nothing_is_backed_up(case):
    probs, outcomes, _ = case
    found = back_up(*case)
    np.testing.assert_array_equal(found.mean, mean_success(probs, outcomes))
    np.testing.assert_array_equal(found.variance, success_noise(outcomes))
    means = np.full((50, 2), 0.4)
    draws = backed_up_posterior(*case, means, np.full((50, 2), 3.0), [np.random.default_rng(i) for i in range(2)])
    for i in range(2):
        one = StratumOutcomes(outcomes.num_correct[i], outcomes.num_verified[i], outcomes.terminal[i])
        np.testing.assert_array_equal(draws[:, i], posterior_success(one, means[:, i], np.full(50, 3.0), 1, np.random.default_rng(i))[0])


def test_a_single_continuation_is_worth_the_worst_case():
    found = back_up(*linked([[1, 2], [3, 1]], [[1, 4], [4, 4]], 1, 1))
    assert found.variance[0, 0] == 0.25
    assert found.mean[0, 0] == pytest.approx((8 * 0.5 + 1) / 9, rel=1e-15)


def test_an_unsampled_stratum_takes_the_backed_up_value():
    found = back_up(*linked([[4, 0], [3, 1]], [[4, 0], [4, 4]], 4, 4))
    assert found.mean[0, 1] == found.mean[0, 0] < 1.0


def test_a_next_node_that_is_known_exactly_outweighs_every_arrival():
    case = linked([[4, 0], [0, 0]], [[4, 4], [0, 0]], 4, 4, [[NAN, NAN], [1.0, 0.0]])
    found = back_up(*case)
    assert found.mean[0, 0] == 0.5
    assert found.variance[0, 0] == 0.0
    draws = backed_up_posterior(*case, np.full((50, 2), 0.4), np.full((50, 2), 3.0), [np.random.default_rng(i) for i in range(2)])
    assert np.all((draws[:, 0, 0] >= 0.25) & (draws[:, 0, 0] <= 0.75))  # half of it is the known value


def test_verdicts_that_disagree_with_a_known_value_leave_the_draws_defined():
    case = linked([[4, 0], [0, 0]], [[4, 4], [0, 0]], 4, 4, [[NAN, NAN], [0.0, 0.0]])
    draws = backed_up_posterior(*case, np.full((50, 2), 0.4), np.full((50, 2), 3.0), [np.random.default_rng(i) for i in range(2)])
    assert np.all((draws >= 0) & (draws <= 1))


def test_arrivals_enter_the_draws_by_bayes_rule():
    """A next node with one stratum has a Beta posterior, and with arrivals another Beta posterior; all continuations stay."""
    num_draws, strength, centre = 40_000, 4.0, 0.5
    outcomes = StratumOutcomes(np.array([[9], [4]]), np.array([[12], [10]]), np.full((2, 1), NAN))
    links = PathLinks(np.array([1, -1]), np.array([0, -1]), np.array([12, 0]), np.array([9, 0]), np.ones(2))
    sources = [np.random.default_rng(i) for i in range(2)]
    draws = backed_up_posterior(
        np.ones((2, 1)), outcomes, links, np.full((num_draws, 2), centre), np.full((num_draws, 2), strength), sources
    )[:, 0, 0]
    alpha, beta = strength * centre + 13, strength * (1 - centre) + 9
    mean, variance = alpha / (alpha + beta), alpha * beta / (alpha + beta) ** 2 / (alpha + beta + 1)
    # weights in place of draws cost less than three quarters of them here: four standard errors of 10,000 draws
    assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / 10_000)
    assert abs(draws.var() / variance - 1) < 4 * np.sqrt(2 / 10_000)


@dataclass(frozen=True)
class Forest:
    """Many different paths of three nodes, drawn from the model that the posterior assumes, or nearly so."""

    probs: np.ndarray
    success: np.ndarray
    outcomes: StratumOutcomes
    links: PathLinks

    @classmethod
    def grown(cls, strength, num_paths=1000, strata=6, length=3):
        generator = np.random.default_rng(0)
        probs = np.clip(generator.dirichlet(np.full(strata, 0.5), size=(num_paths, length)), 1e-3, None)
        probs /= probs.sum(axis=-1, keepdims=True)
        everywhere = np.ones(strata, dtype=bool)
        counts = np.array([[allocate_continuations(0.5 * p + 0.5 / strata, 32, 3, everywhere) for p in path] for path in probs])
        level = np.empty((num_paths, length))
        level[:, 0] = generator.beta(2, 2, size=num_paths)
        for k in range(1, length):  # the value of a path's nodes drifts
            level[:, k] = np.clip(generator.beta(20 * level[:, k - 1], 20 * (1 - level[:, k - 1])), 1e-6, 1 - 1e-6)
        shape = (strength * level, strength * (1 - level))
        success = generator.beta(shape[0][..., None], shape[1][..., None], size=probs.shape)
        leaving, stay_prob = generator.beta(*shape), generator.choice([0.02, 0.3, 0.7, 0.98], size=level.shape)
        correct = generator.binomial(counts, success)
        staying, staying_correct = np.zeros((2, *level.shape), dtype=np.int64)
        for k in reversed(range(length - 1)):
            value = np.clip(np.sum(probs[:, k + 1] * success[:, k + 1], axis=-1), 0.0, 1.0)  # rounding may lead out
            success[:, k, TAKEN] = stay_prob[:, k] * value + (1 - stay_prob[:, k]) * leaving[:, k]
            staying[:, k] = generator.binomial(counts[:, k, TAKEN], stay_prob[:, k])
            staying_correct[:, k] = generator.binomial(staying[:, k], value)
            correct[:, k, TAKEN] = staying_correct[:, k] + generator.binomial(counts[:, k, TAKEN] - staying[:, k], leaving[:, k])
        following = np.arange(num_paths * length) + 1
        following[length - 1 :: length] = -1
        taken = np.full(len(following), TAKEN)
        links = PathLinks(following, taken, staying.ravel(), staying_correct.ravel(), stay_prob.ravel())
        probs, success, correct, counts = (a.reshape(-1, strata) for a in (probs, success, correct, counts))
        return cls(probs, success, StratumOutcomes(correct, counts, np.full(counts.shape, NAN)), links)


@pytest.mark.parametrize("strength", [4.0, 20.0, 100.0])
def test_intervals_of_backed_up_success_and_of_gains_cover(strength):
    forest = Forest.grown(strength)
    sources = [np.random.default_rng([1, node]) for node in range(len(forest.probs))]
    prior = draw_priors(success_prior(forest.outcomes), forest.outcomes, 199, sources)
    signal = np.random.default_rng(2).normal(size=forest.probs.shape)
    backs_up = forest.links.next_node >= 0

    def gain(success):
        return natural_gain(np.log(forest.probs), signal, success)

    def coverage(draws, truth):
        """Share of truths between the 10th smallest and the 10th largest of 199 draws, 180 of 200 gaps."""
        ordered = np.sort(draws, axis=0)
        return np.mean((ordered[9] < truth) & (truth < ordered[189]))

    def backed_up(centres):
        return backed_up_posterior(forest.probs, forest.outcomes, forest.links, centres, prior.strength, sources)

    draws, truth = backed_up(prior.mean), forest.success[backs_up, TAKEN]
    # 2,000 truths: four binomial standard errors are 2.7 %. Allowed beside: 3 %, since the prior knows nothing of the next node's level, which
    # is near this one's; measured .85–.88
    tolerance = 4 * np.sqrt(0.9 * 0.1 / len(truth))
    assert 0.9 - 0.03 - tolerance < coverage(draws[:, backs_up, TAKEN], truth) < 0.9 + tolerance
    # the prior's centre held at its estimate would make values too sure of themselves where strata borrow much
    fixed = backed_up(np.broadcast_to(prior.mean.mean(axis=0), prior.mean.shape))
    assert strength < 20 or coverage(fixed[:, backs_up, TAKEN], truth) < 0.9 - 0.03 - tolerance
    generator = np.random.default_rng(3)
    plain = np.stack([posterior_success(forest.outcomes, *pair, 1, generator)[0] for pair in zip(prior.mean, prior.strength, strict=True)])
    # gains cover as they do without back-up: all but strength 100 to the name, which so few continuations do not tell from 158
    assert coverage(gain(draws), gain(forest.success)) > min(0.9, coverage(gain(plain), gain(forest.success))) - tolerance


def test_draws_do_not_depend_on_other_paths():
    path = walk(0.6, 0.4)
    probs, outcomes, links = path.measured(COUNTS[1], repeats=4)

    def drawn(nodes):
        own = StratumOutcomes(outcomes.num_correct[nodes], outcomes.num_verified[nodes], outcomes.terminal[nodes])
        following = np.where(links.next_node[nodes] >= 0, links.next_node[nodes] - nodes[0], -1)
        fields = (getattr(links, name)[nodes] for name in ("stratum", "num_staying", "num_staying_correct", "stay_prob"))
        sources = [np.random.default_rng(node) for node in nodes]
        return backed_up_posterior(
            probs[nodes], own, PathLinks(following, *fields), np.full((20, len(nodes)), 0.5), np.full((20, len(nodes)), 3.0), sources
        )

    np.testing.assert_array_equal(drawn(np.arange(12))[:, 6:9], drawn(np.arange(6, 9)))


def test_links_back_and_links_of_other_nodes_are_refused():
    ones = np.ones(2, dtype=np.int64)
    with pytest.raises(ValueError, match="sort the nodes of each path by position"):
        PathLinks(np.array([-1, 0]), ones, ones, ones, np.ones(2))
    with pytest.raises(ShapeError, match="one entry per node"):
        PathLinks(np.array([1, -1]), ones, ones, ones, np.ones(3))
    probs, outcomes, links = linked([[4, 0], [3, 1]], [[4, 4], [4, 4]], 4, 4)
    with pytest.raises(ShapeError, match="expected probabilities and outcomes of the 2 linked nodes"):
        back_up(probs[:1], StratumOutcomes(outcomes.num_correct[:1], outcomes.num_verified[:1], outcomes.terminal[:1]), links)


def test_an_interval_imagines_none_to_leave_where_every_continuation_arrives():
    known = np.array([[np.nan, np.nan], [1.0, 0.0]])
    outcomes = StratumOutcomes(np.array([[3, 2], [0, 0]]), np.array([[5, 4], [0, 0]]), known)
    probs = np.array([[0.6, 0.4], [0.5, 0.5]])

    def variance(stay_prob, staying):
        right = min(staying, 3)
        links = PathLinks(np.array([1, -1]), np.array([0, 0]), np.array([staying, 0]), np.array([right, 0]), np.array([stay_prob, 1.0]))
        return float(interval_variance(probs, outcomes, links)[0, 0])

    assert variance(1.0, 5) == 0.0  # the value of the next node is known, and all go there
    assert variance(0.9, 5) > 0.0  # that all five arrived was chance
    # none arrives: as without a link
    np.testing.assert_allclose(variance(0.0, 0), 4 / 7 * 3 / 7 / 5, rtol=1e-12)


def test_backed_up_counts_tell_as_much_as_the_backed_up_variance_says():
    probs, outcomes, links = linked([[4, 0], [3, 1]], [[6, 4], [4, 4]], 4, 3)
    told = backed_up_outcomes(probs, outcomes, links)
    count, correct = told.num_verified[0, 0], told.num_correct[0, 0]
    assert correct / count == pytest.approx(back_up(probs, outcomes, links).mean[0, 0], rel=1e-9)
    share = (correct + 1) / (count + 2)
    # forty steps that at least halve the error
    assert share * (1 - share) / count == pytest.approx(interval_variance(probs, outcomes, links)[0, 0], rel=1e-9)
    for found, seen in ((told.num_verified, outcomes.num_verified), (told.num_correct, outcomes.num_correct)):
        np.testing.assert_array_equal(found[[0, 1, 1], [1, 0, 1]], seen[[0, 1, 1], [1, 0, 1]])
