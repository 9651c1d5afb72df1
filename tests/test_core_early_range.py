"""Where outcomes are settled: shares that add up, nothing explained by teachers that know nothing, and the truth of an exact world."""

from dataclasses import replace

import numpy as np
import pytest

from opdscope.core.divergences import entropy, reverse_kl_signal
from opdscope.core.early_range import ScreenedResponses, learn_early_range
from opdscope.core.sampling import node_importance, variance_importance
from opdscope.models.exact import ReasoningWorld

WORLD = ReasoningWorld(length=30)


def _roll_out(question: int, count: int, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and states: rollout × position."""
    probs, following = np.exp(WORLD.student(question)), WORLD.next_states()
    tokens, states = np.zeros((2, count, WORLD.length + 1), dtype=np.int64)
    for t in range(WORLD.length + 1):
        uniform = source.random(count)[:, None]
        tokens[:, t] = np.sum(np.cumsum(probs[t, states[:, t]], axis=-1) <= uniform, axis=-1).clip(max=probs.shape[-1] - 1)
        if t < WORLD.length:
            states[:, t + 1] = following[t, states[:, t], tokens[:, t]]
    return tokens, states


def _screened(teachers: tuple[str, ...], questions: int, count: int) -> tuple[ScreenedResponses, np.ndarray, np.ndarray]:
    """Responses, and beside each position the exact variance of success over the next token, and the bound."""
    source, parts = np.random.default_rng(0), []
    for question in range(questions):
        student, success = WORLD.student(question), WORLD.success(question)
        signals = np.array([reverse_kl_signal(student, WORLD.teacher(name, question)) for name in teachers])
        mean = np.sum(np.exp(student) * signals, axis=-1, keepdims=True)
        value = np.sum(np.exp(student) * success, axis=-1, keepdims=True)
        spread = np.sum(np.exp(student) * (success - value) ** 2, axis=-1)
        for tokens, states in zip(*_roll_out(question, count, source), strict=True):
            at = np.arange(len(tokens)), states
            divergence = np.maximum(-mean[:, *at, 0], 0.0)
            bound = node_importance(np.sum(np.exp(student[at]) ** 2, axis=-1), divergence)
            parts.append((float(tokens[-1] == 0), entropy(student[at]), (signals - mean)[:, *at, tokens], divergence, spread[at], bound))
    outcome, *arrays = zip(*parts, strict=True)
    entropies, centred, divergences, ranges, bounds = (np.concatenate(own, axis=-1) for own in arrays)
    length = np.full(len(parts), WORLD.length + 1)
    question = np.repeat(np.arange(questions), count)
    return ScreenedResponses(question, np.array(outcome), length, entropies, centred, divergences), ranges, bounds


def _shares(responses: ScreenedResponses, bounds: np.ndarray) -> np.ndarray:
    """Response × position."""
    early, size = learn_early_range(responses), WORLD.length + 1
    own = [slice(start, start + size) for start in range(0, len(bounds), size)]
    return np.array([early.shares(responses.entropy[at], responses.reverse_kl[:, at], bounds[at]) for at in own])


Screened = tuple[ScreenedResponses, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def informed() -> Screened:
    return _screened(("good", "random"), 40, 24)


def test_shares_of_a_response_add_up_to_one_on_average(informed: Screened) -> None:
    responses, _, bounds = informed
    shares = _shares(responses, bounds)
    assert shares.sum(axis=1).mean() == pytest.approx(1.0, rel=1e-9)
    assert shares.min() >= 0.0


def test_the_variance_of_outcomes_is_the_sum_of_ranges_along_a_response(informed: Screened) -> None:
    """The law that the shares rest on, in a world whose ranges are known."""
    _, ranges, _ = informed
    settled = ranges.reshape(40, -1).sum(axis=1) / 24
    exact = np.array([WORLD.success_rate(q) * (1.0 - WORLD.success_rate(q)) for q in range(40)])
    # four standard errors over questions
    assert abs(np.mean(settled - exact)) < 4 * np.std(settled - exact) / np.sqrt(40)
    assert np.mean(exact) > 0.1


def test_shares_follow_the_true_ranges(informed: Screened) -> None:
    responses, ranges, bounds = informed
    early, shares = learn_early_range(responses), _shares(responses, bounds).ravel()
    settled = ranges > 1e-6
    # all of the outcome's variance is settled at a sixth of the positions, besides the answer
    assert np.mean(settled) < 0.25
    assert shares[settled].sum() > 0.7 * shares.sum()
    assert early.explained.sum() > 0.15
    # what the good teacher's push goes along with, and not the random one's
    explained = np.argmax(early.explained)
    assert abs(early.slopes[0, explained]) > 4 * abs(early.slopes[1, explained])


def test_teachers_that_know_nothing_explain_nothing() -> None:
    early = learn_early_range(_screened(("random", "stylistic"), 40, 24)[0])
    # A fit to noise of k controls explains -k/n at what it has not seen, give or take sqrt(2k)/n (n rollouts, here 960, k = 6, less for the
    # ridge); what is negative counts as zero. Four of these deviations above zero.
    assert early.explained.sum() < 4 * np.sqrt(2 * 6) / 960


@pytest.mark.parametrize("outcome", [1.0, np.nan])
def test_without_any_variance_of_outcomes_the_bound_alone_is_left(outcome: float) -> None:
    responses, _, bounds = _screened(("good",), 4, 6)
    same = replace(responses, outcome=np.full(24, outcome))
    assert learn_early_range(same).explained.tolist() == [0.0] * 3
    squares = bounds.reshape(24, -1) ** 2
    np.testing.assert_allclose(_shares(same, bounds), squares / squares.sum(axis=1, keepdims=True), rtol=1e-12)


def test_rollouts_without_a_verdict_are_not_learned_from(informed: Screened) -> None:
    responses, _, _ = informed
    size = WORLD.length + 1
    kept = responses.question < 39
    part = ScreenedResponses(
        responses.question[kept],
        responses.outcome[kept],
        responses.length[kept],
        responses.entropy[: kept.sum() * size],
        responses.centred[:, : kept.sum() * size],
        responses.reverse_kl[:, : kept.sum() * size],
    )
    unknown = replace(responses, outcome=np.where(kept, responses.outcome, np.nan))
    # bins are of all positions, so that only what each explains is told apart by a handful of them
    np.testing.assert_allclose(learn_early_range(unknown).explained, learn_early_range(part).explained, atol=0.02)


def test_a_divergence_that_rounding_left_below_zero_settles_nothing(informed: Screened) -> None:
    """A teacher that is the student but for rounding, at some positions or everywhere."""
    responses, _, bounds = informed
    source = np.random.default_rng(1)
    tiny = np.array([np.where(source.random(len(bounds)) < 0.5, -1e-9, own) for own in responses.reverse_kl])
    for divergence in (tiny, np.full_like(tiny, -1e-9)):
        shares = _shares(replace(responses, reverse_kl=divergence), bounds)
        assert np.all(np.isfinite(shares))
        assert shares.min() >= 0.0
        assert np.all(np.isfinite(variance_importance(divergence, shares.ravel(), 32)))
