"""Where outcomes are settled: shares that add up, nothing explained by teachers that know nothing, and the truth of an exact world."""

from dataclasses import replace

import numpy as np
import pytest

from opdscope.core.divergences import entropy, reverse_kl_signal
from opdscope.core.early_range import ScreenedResponse, learn_early_range
from opdscope.core.sampling import node_importance
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


def _screened(teachers: tuple[str, ...], questions: int, count: int) -> tuple[list[ScreenedResponse], list[np.ndarray]]:
    """Responses, and beside each the exact variance of success over the next token at every position."""
    source, found, ranges = np.random.default_rng(0), [], []
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
            centred = (signals - mean)[:, *at, tokens]
            found.append(ScreenedResponse(question, float(tokens[-1] == 0), entropy(student[at]), centred, divergence, bound))
            ranges.append(spread[at])
    return found, ranges


@pytest.fixture(scope="module")
def informed() -> tuple[list[ScreenedResponse], list[np.ndarray]]:
    return _screened(("good", "random"), 40, 24)


def test_shares_of_a_response_add_up_to_one_on_average(informed: tuple[list[ScreenedResponse], list[np.ndarray]]) -> None:
    responses, _ = informed
    early = learn_early_range(responses)
    shares = [early.shares(r.entropy, r.reverse_kl, r.bound) for r in responses]
    assert np.mean([own.sum() for own in shares]) == pytest.approx(1.0, rel=1e-9)
    assert min(own.min() for own in shares) >= 0.0


def test_the_variance_of_outcomes_is_the_sum_of_ranges_along_a_response(informed: tuple[list[ScreenedResponse], list[np.ndarray]]) -> None:
    """The law that the shares rest on, in a world whose ranges are known."""
    _, ranges = informed
    settled = np.array([own.sum() for own in ranges]).reshape(40, 24).mean(axis=1)
    exact = np.array([WORLD.success_rate(q) * (1.0 - WORLD.success_rate(q)) for q in range(40)])
    # four standard errors over questions
    assert abs(np.mean(settled - exact)) < 4 * np.std(settled - exact) / np.sqrt(40)
    assert np.mean(exact) > 0.1


def test_shares_follow_the_true_ranges(informed: tuple[list[ScreenedResponse], list[np.ndarray]]) -> None:
    responses, ranges = informed
    early = learn_early_range(responses)
    shares, true = np.concatenate([early.shares(r.entropy, r.reverse_kl, r.bound) for r in responses]), np.concatenate(ranges)
    settled = true > 1e-6
    # all of the outcome's variance is settled at a sixth of the positions, besides the answer
    assert np.mean(settled) < 0.25
    assert shares[settled].sum() > 0.7 * shares.sum()
    assert early.explained.sum() > 0.15
    # what the good teacher's push goes along with, and not the random one's
    explained = np.argmax(early.explained)
    assert abs(early.slopes[0, explained]) > 4 * abs(early.slopes[1, explained])


def test_teachers_that_know_nothing_explain_nothing() -> None:
    responses, _ = _screened(("random", "stylistic"), 40, 24)
    early = learn_early_range(responses)
    # A fit to noise of k controls explains -k/n at what it has not seen, give or take sqrt(2k)/n (n rollouts, here 960, k = 6, less for the
    # ridge); what is negative counts as zero. Four of these deviations above zero.
    assert early.explained.sum() < 4 * np.sqrt(2 * 6) / 960


def test_without_any_variance_of_outcomes_the_bound_alone_is_left() -> None:
    responses, _ = _screened(("good",), 4, 6)
    agreed = [replace(response, outcome=1.0) for response in responses]
    early = learn_early_range(agreed)
    assert early.explained.tolist() == [0.0] * 3
    shares = early.shares(agreed[0].entropy, agreed[0].reverse_kl, agreed[0].bound)
    np.testing.assert_allclose(shares / shares.sum(), agreed[0].bound ** 2 / np.sum(agreed[0].bound ** 2), rtol=1e-12)
