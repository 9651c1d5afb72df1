"""Outcomes less their controls, in a world of coin tosses on which every success is known: unbiased, less noisy, and with intervals that know it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from opdscope.core.backup import PathLinks, back_up, interval_variance, no_links
from opdscope.core.controlled import ControlledContinuations, control_outcomes
from opdscope.core.controls import LARGEST_LOG_RATIO, centred_log_ratio
from opdscope.core.success import StratumOutcomes

REPEATS = 4000
LENGTH, HEADS = 6, 0.6
"""A response is so many tosses; the path is heads throughout, with a node at the first toss and one at the fourth."""
AT = (0, 3)
COUNTS = np.array([[6, 4], [5, 3]])
"""Continuations after heads (stratum 0) and tails at the two nodes."""


def chance(num_heads):
    return 1 / (1 + np.exp(2.0 * (4.0 - num_heads)))


def success(position, num_heads):
    """When so many heads lie behind, exactly."""
    if position == LENGTH:
        return chance(num_heads)
    return HEADS * success(position + 1, num_heads + 1) + (1 - HEADS) * success(position + 1, num_heads)


TRUTH = np.array([[success(t + 1, t + 1), success(t + 1, t)] for t in AT])
PROBS = np.tile([HEADS, 1 - HEADS], (2, 1))


def world(seed, teacher=(1.0,), repeats=REPEATS, linked=True, counts=COUNTS, silent=lambda tosses: np.zeros(len(tosses), dtype=bool)):
    """Independent copies of the path: outcomes, links and controls; `teacher` is how much each log-ratio is worth, NaN for pure noise."""
    source, parts = np.random.default_rng(seed), []
    for place, position in enumerate(AT):
        for stratum in range(2):
            size = repeats * counts[place, stratum]
            tosses = source.random((size, LENGTH - position - 1)) < HEADS
            right = source.random(size) < chance((place * 3) + (stratum == 0) + tosses.sum(axis=1))
            ratio = np.stack([source.normal(size=tosses.shape) if np.isnan(t) else t * (tosses - HEADS) for t in teacher], axis=-1)
            on = np.cumprod(tosses, axis=1) if linked and place == 0 and stratum == 0 else np.zeros_like(tosses)
            stays = on[:, 1] > 0
            path = np.argmin(on, axis=1)  # the toss by which a continuation left
            until = np.where(stays, 2, tosses.shape[1])[:, None] > np.arange(tosses.shape[1])
            own = linked and place == 0 and stratum == 0
            since = np.where(stays, 1, path)[:, None] < np.arange(tosses.shape[1]) if own else np.ones_like(tosses)
            parts.append(
                ControlledContinuations(
                    np.repeat(np.arange(repeats) * 2 + place, counts[place, stratum]),
                    np.full(size, stratum),
                    np.where(silent(tosses), np.nan, right),
                    np.full(size, own),
                    stays & own,
                    ratio.sum(axis=1),
                    (ratio * (until if own else np.ones_like(until))[..., None]).sum(axis=1),
                    (ratio * since[..., None]).sum(axis=1),
                )
            )
    rows = ControlledContinuations(*(np.concatenate([getattr(p, name) for p in parts]) for name in ControlledContinuations.__annotations__))
    shape, known = (repeats * 2, 2), ~np.isnan(rows.outcome)
    correct, verified = np.zeros((2, *shape), dtype=np.int64)
    np.add.at(verified, (rows.node[known], rows.stratum[known]), 1)
    np.add.at(correct, (rows.node[known], rows.stratum[known]), rows.outcome[known].astype(np.int64))
    links = no_links(shape[0])
    if linked:
        staying = np.bincount(rows.node[rows.stays & known], minlength=shape[0])
        right = np.bincount(rows.node[rows.stays & known], rows.outcome[rows.stays & known], minlength=shape[0]).astype(np.int64)
        following = np.where(np.arange(shape[0]) % 2 == 0, np.arange(shape[0]) + 1, -1)
        links = PathLinks(following, np.zeros(shape[0], dtype=np.int64), staying, right, np.tile([HEADS**2, 1.0], repeats))
    return rows, StratumOutcomes(correct, verified, np.full(shape, np.nan)), links


def controlled(rows):
    num_nodes = int(rows.node.max()) + 1
    return control_outcomes(rows, np.tile(TRUTH, (num_nodes // 2, 1)), (np.arange(num_nodes) // 2) % 10)


def measured(seed, teacher=(1.0,), linked=True):
    rows, outcomes, links = world(seed, teacher, linked=linked)
    sums = controlled(rows).sums
    probs = np.tile(PROBS, (REPEATS, 1))
    return probs, outcomes, links, sums


def off(values, truth):
    """Distance of the mean of independent repetitions from the truth, in standard errors; the largest over nodes and strata."""
    values = values.reshape(REPEATS, -1)
    return np.max(np.abs(values.mean(axis=0) - np.ravel(truth)) / (values.std(axis=0) / np.sqrt(REPEATS)))


TEACHERS = [(1.0,), (1.0, np.nan), (np.nan,), (-0.5, 2.0)]


# 4.5 standard errors: one of the 32 means lies beyond by chance for one seed in 4,600
@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("teacher", TEACHERS, ids=str)
def test_success_is_unbiased_whatever_the_teacher_knows(teacher, linked):
    found = back_up(*measured(0, teacher, linked)[:3], sums=measured(0, teacher, linked)[3])
    assert off(found.mean, TRUTH) < 4.5


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("teacher", TEACHERS, ids=str)
def test_the_variance_is_right_on_average(teacher, linked):
    probs, outcomes, links, sums = measured(1, teacher, linked)
    found = back_up(probs, outcomes, links, sums=sums)
    excess = (found.mean - np.tile(TRUTH, (REPEATS, 1))) ** 2 - found.variance
    assert off(excess, np.zeros(4)) < 4.5


def test_those_tests_can_tell():
    """Arrivals' outcomes less the control of all their tokens, or leavers' less that of what they drew after leaving, are off."""
    rows, outcomes, links = world(0)
    probs = np.tile(PROBS, (REPEATS, 1))
    for wrong in (replace(rows, after=rows.control), replace(rows, before=np.where(rows.stays[:, None], rows.before, rows.after))):
        assert off(back_up(probs, outcomes, links, sums=controlled(wrong).sums).mean, TRUTH) > 6


def variances(probs, outcomes, links, sums):
    return back_up(probs, outcomes, links, sums=sums).mean.reshape(REPEATS, 4).var(axis=0)


def test_what_the_teacher_knows_is_taken_out_of_the_noise():
    """By as much as the best common slope takes out, which follows from enumerating the tosses."""
    parts = []
    for t in AT:
        left = LENGTH - t - 1
        heads = np.arange(left + 1)
        weight = binom.pmf(heads, left, HEADS)
        for behind in (t + 1, t):
            right = chance(behind + heads)
            parts.append([weight @ (right * (heads - left * HEADS)), left * HEADS * (1 - HEADS), (weight @ right) * (1 - weight @ right)])
    covariance, size, whole = np.array(parts).T
    free = COUNTS.ravel() - 1  # of each stratum, degrees of freedom about its mean
    slope = np.sum(free * covariance) / np.sum(free * size)
    probs, outcomes, links, sums = measured(2, linked=False)
    ratio = variances(probs, outcomes, links, sums) / variances(probs, outcomes, links, None)
    # a variance of 4,000 draws is known to 2.2 %, the square root of 2 / 4,000: four of them, twice
    np.testing.assert_allclose(ratio, 1 - (2 * slope * covariance - slope**2 * size) / whole, rtol=8 * np.sqrt(2 / REPEATS))
    assert ratio[0] < 0.75


def test_controls_and_backing_up_add_to_one_another():
    alone = variances(*measured(2, linked=False))[0]
    probs, outcomes, links, sums = measured(2)
    assert variances(probs, outcomes, links, sums)[0] < 0.85 * min(alone, variances(probs, outcomes, links, None)[0])


def test_noise_costs_nothing_and_is_known_to_explain_nothing():
    probs, outcomes, links, sums = measured(3, (np.nan,))
    plain, less = (variances(probs, outcomes, links, own) for own in (None, sums))
    np.testing.assert_allclose(less, plain, rtol=0.01)
    assert abs(sums.variance_left(outcomes) - 1.0) < 0.01
    assert sums.kept.mean() > 0.95


@pytest.mark.parametrize("linked", [True, False])
def test_intervals_of_gains_cover(linked):
    repeats, probs = 1000, np.tile(PROBS, (1000, 1))
    rows, outcomes, links = world(4, linked=linked, counts=6 * COUNTS, repeats=repeats)
    sums = controlled(rows).sums
    found = back_up(probs, outcomes, links, sums=sums).mean
    variance = interval_variance(probs, outcomes, links, sums=sums)
    gain, noise = (found[:, 0] - found[:, 1]).reshape(-1, 2), variance.sum(axis=1).reshape(-1, 2)
    held = np.mean(np.abs(gain - (TRUTH[:, 0] - TRUTH[:, 1])) < 1.645 * np.sqrt(noise), axis=0)
    # of 1,000 experiments four standard errors are 3.8 %
    np.testing.assert_allclose(held, 0.9, atol=0.038)


def test_continuations_without_a_verdict_do_not_shift_the_others():
    """Where only what began with heads is verified, controls of those have another mean; it is put back."""
    rows, outcomes, links = world(5, linked=False, silent=lambda tosses: ~tosses[:, 0])
    found = back_up(np.tile(PROBS, (REPEATS, 1)), outcomes, links, sums=controlled(rows).sums).mean
    truth = np.array([[success(t + 2, t + 2), success(t + 2, t + 1)] for t in AT])
    known = (outcomes.num_verified > 0).reshape(REPEATS, 4)
    for column, (value, use) in enumerate(zip(found.reshape(REPEATS, 4).T, known.T, strict=True)):
        few = value[use]
        assert abs(few.mean() - truth.ravel()[column]) < 4.5 * few.std() / np.sqrt(len(few))


def test_a_centred_log_ratio_has_mean_zero_whatever_the_teacher_excludes():
    source = np.random.default_rng(6)
    student, teacher = (np.log(source.dirichlet(np.ones(5), size=1)) for _ in range(2))
    teacher[0, 2] = -np.inf
    student[0, 4] = teacher[0, 4] = -np.inf
    student[0, :4] -= np.log(np.sum(np.exp(student[0, :4])))
    values = np.array([centred_log_ratio(student, teacher, np.array([k]))[0] for k in range(4)])
    assert abs(np.sum(np.exp(student[0, :4]) * values)) < 1e-12
    assert values.max() - values.min() <= 2 * LARGEST_LOG_RATIO
    ratio = teacher[0, :2] - student[0, :2]
    np.testing.assert_allclose(values[0] - values[1], ratio[0] - ratio[1], rtol=1e-12)


def test_slopes_do_not_know_their_own_fold():
    rows, _, _ = world(7, repeats=40)
    fold = np.arange(80) // 2 % 4
    changed = replace(rows, outcome=np.where(fold[rows.node] == 2, 1.0 - rows.outcome, rows.outcome))
    one, other = (control_outcomes(own, np.tile(TRUTH, (40, 1)), fold).outcomes for own in (rows, changed))
    same = fold[rows.node] == 2
    np.testing.assert_allclose((rows.outcome - one)[same], (changed.outcome - other)[same], atol=1e-12)
    assert not np.allclose((rows.outcome - one)[~same], (changed.outcome - other)[~same])


def test_where_an_outcome_is_foretold_for_certain_a_control_adds_no_noise():
    source, count = np.random.default_rng(8), 200
    luck = source.normal(size=(2 * count, 10))
    right = np.where(np.arange(2 * count)[:, None] < count, luck + source.normal(size=luck.shape) > 0, 1.0)
    node = np.repeat(np.arange(2 * count), 10)
    flat, no = luck.reshape(-1, 1), np.zeros(len(node), dtype=bool)
    rows = ControlledContinuations(node, np.zeros_like(node), right.ravel().astype(float), no, no, flat, flat, flat)
    success = np.where(np.arange(2 * count) < count, 0.5, 1.0)[:, None]
    found = control_outcomes(rows, success, np.arange(2 * count) % 10).outcomes.reshape(2 * count, 10).var(axis=1)
    open_ones, certain = found[:count].mean(), found[count:].mean()
    # ten outcomes show nine tenths; the best slope is the covariance, 1 / sqrt(4 pi), which leaves 1/4 - 1 / (4 pi) of the variance
    assert abs(open_ones - 0.9 * (0.25 - 1 / (4 * np.pi))) < 0.01
    assert certain < 0.1 * 0.9 / (4 * np.pi)
    # one slope for all would have to choose between the two
    alike = control_outcomes(rows, np.full_like(success, 0.5), np.arange(2 * count) % 10).outcomes.reshape(2 * count, 10).var(axis=1)
    assert alike.mean() > found.mean() + 0.01


def test_counts_for_posteriors_are_worth_as_much_as_the_outcomes_less_their_controls():
    rows, outcomes, _ = world(9, linked=False, counts=6 * COUNTS, repeats=500)
    sums = controlled(rows).sums
    found = sums.effective(outcomes)
    share, size = found.num_correct / found.num_verified, found.num_verified
    truth = np.tile(TRUTH, (500, 1))
    # the mean of so many independent outcomes would be as far from the truth, up to what a variance of 2,000 numbers is uncertain by, twice
    np.testing.assert_allclose(np.mean((share - truth) ** 2), np.mean(truth * (1 - truth) / size), rtol=8 * np.sqrt(2 / 2000))
    plain = sums.kept == 1.0
    np.testing.assert_array_equal(found.num_correct[plain], outcomes.num_correct[plain])
