"""Strata against the full vocabulary, gains as derivatives along paths, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdscope.core.alignment import (
    alignment_score,
    gain,
    ideal_norm_noise,
    ideal_squared_norm,
    natural_alignment,
    natural_gain,
    teacher_advantage,
)
from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient, ideal_gradient
from opdscope.errors import NormalizationError, OpdscopeError, ShapeError

OBJECTIVES = ("reverse_kl", "forward_kl", "generalized_jsd(0.3)")
FLOAT64 = 1e-12
"""Sums of 30 terms of order one, and q/p up to some hundreds: a thousandfold of their rounding."""


class Node:
    """A full vocabulary, and the same node as strata: some candidates and a tail in which all tokens succeed equally often."""

    def __init__(self, seed, vocab=30, num_candidates=5):
        generator = np.random.default_rng(seed)
        logits = generator.normal(scale=2.0, size=(2, vocab))
        self.p, self.q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        self.success = generator.uniform(size=vocab)
        self.head = generator.permutation(vocab)[:num_candidates]
        self.tail = np.setdiff1d(np.arange(vocab), self.head)
        self.success[self.tail] = generator.uniform()
        self.logprobs = np.log(np.append(self.p[self.head], self.p[self.tail].sum()))
        self.squared = np.append(self.p[self.head] ** 2, np.sum(self.p[self.tail] ** 2))
        self.stratum_success = np.append(self.success[self.head], self.success[self.tail[0]])

    def signal(self, objective):
        return signal_of(objective)(np.log(self.p), np.log(self.q))

    def gradient(self, objective):
        return distillation_gradient(np.log(self.p), np.log(self.q), objective)

    def strata(self, values):
        """Candidates' own values, and the tail's student-weighted mean."""
        return np.append(values[self.head], np.average(values[self.tail], weights=self.p[self.tail]))

    def covariance(self, first, second):
        return np.sum(self.p * first * second) - np.sum(self.p * first) * np.sum(self.p * second)


def score_of(node, gradient, **changed):
    arguments = {
        "student_logprobs": node.logprobs,
        "squared_probs": node.squared,
        "gradient": node.strata(gradient),
        "gradient_squared_norm": np.array(np.sum(gradient**2)),
        "success": node.stratum_success,
    }
    return float(alignment_score(**(arguments | changed)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_strata_give_the_full_vocabularys_numbers_where_the_tail_succeeds_evenly(seed, objective):
    node = Node(seed)
    f, d, ideal = node.signal(objective), node.gradient(objective), ideal_gradient(node.p, node.success)
    expected = {
        "natural gain": node.covariance(node.success, f),
        "gain": np.dot(ideal, d),
        "norm": np.sum(ideal**2),
        "score": np.dot(ideal, d) / np.linalg.norm(ideal) / np.linalg.norm(d),
        "natural alignment": node.covariance(node.success, f)
        / np.sqrt(node.covariance(node.success, node.success) * node.covariance(f, f)),
        "advantage": np.sum((node.q - node.p) * node.success),
    }
    teacher = np.append(node.q[node.head], node.q[node.tail].sum())
    found = {
        "natural gain": natural_gain(node.logprobs, node.strata(f), node.stratum_success),
        "gain": gain(node.logprobs, node.strata(d), node.stratum_success),
        "norm": ideal_squared_norm(node.logprobs, node.squared, node.stratum_success),
        "score": score_of(node, d),
        "natural alignment": natural_alignment(node.logprobs, node.strata(f), np.array(node.covariance(f, f)), node.stratum_success),
        "advantage": teacher_advantage(node.logprobs, teacher, node.stratum_success),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=FLOAT64, err_msg=name)
    if objective == "forward_kl":
        np.testing.assert_allclose(found["advantage"], found["natural gain"], rtol=0, atol=FLOAT64)


@pytest.mark.parametrize(
    ("objective", "path"),
    [
        ("reverse_kl", lambda p, q, eta: p ** (1 - eta) * q**eta),
        ("forward_kl", lambda p, q, eta: (1 - eta) * p + eta * q),
        ("generalized_jsd(0.3)", lambda p, q, eta: p * np.exp(eta * 0.7 * np.log(0.3 * q / p + 0.7))),
    ],
)
def test_natural_gain_is_the_derivative_of_the_value_along_the_objectives_path(objective, path):
    node, step = Node(7), 1e-5

    def value(eta):
        moved = path(node.p, node.q, eta)
        return np.sum(moved * node.success) / np.sum(moved)

    numeric = (value(step) - value(-step)) / (2 * step)
    # truncation step² = 1e-10 times a third derivative of order |f|³ ≤ 100; rounding 1e-16 / step = 1e-11
    assert float(natural_gain(node.logprobs, node.strata(node.signal(objective)), node.stratum_success)) == pytest.approx(numeric, abs=1e-8)


def test_gain_is_the_derivative_of_the_value_along_the_gradient_on_the_logits():
    node, step = Node(8), 1e-5
    gradient = node.gradient("reverse_kl")

    def value(eta):
        moved = node.p * np.exp(eta * gradient)
        return np.sum(moved * node.success) / np.sum(moved)

    numeric = (value(step) - value(-step)) / (2 * step)  # same error as above
    assert float(gain(node.logprobs, node.strata(gradient), node.stratum_success)) == pytest.approx(numeric, abs=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_score_is_bounded_and_ignores_the_size_of_the_push(seed, scale):
    node = Node(seed)
    gradient = node.gradient("reverse_kl")
    score = score_of(node, gradient)
    assert -1.0 <= score <= 1.0
    assert score_of(node, scale * gradient) == pytest.approx(score, abs=1e-9)
    assert score_of(node, -gradient) == pytest.approx(-score, abs=1e-12)
    assert score_of(node, ideal_gradient(node.p, node.success)) == pytest.approx(1.0, abs=1e-9)
    stretched = 0.5 + 0.1 * (node.stratum_success - 0.5)
    assert score_of(node, gradient, success=stretched) == pytest.approx(score, abs=1e-9)


def test_padded_strata_change_nothing():
    node = Node(3)
    f = node.strata(node.signal("reverse_kl"))
    d = node.strata(node.gradient("reverse_kl"))
    one = np.array(1.0)

    def pad(values, filler):
        return np.concatenate([values, np.full(2, filler)])

    def numbers(logprobs, squared, signal, gradient, success):
        return [
            natural_gain(logprobs, signal, success),
            gain(logprobs, gradient, success),
            ideal_squared_norm(logprobs, squared, success),
            alignment_score(logprobs, squared, gradient, one, success),
            natural_alignment(logprobs, signal, one, success),
            teacher_advantage(logprobs, squared / squared.sum(), success),
            ideal_norm_noise(logprobs, squared, success),
        ]

    plain = numbers(node.logprobs, node.squared, f, d, node.stratum_success)
    padded = numbers(pad(node.logprobs, -np.inf), pad(node.squared, 0.0), pad(f, 9.0), pad(d, -9.0), pad(node.stratum_success, 0.4))
    np.testing.assert_allclose(padded, plain, rtol=1e-10)  # order of summation, then the cancellation in S - V


def test_leading_axes_broadcast():
    nodes = [Node(seed) for seed in range(4)]
    logprobs = np.stack([node.logprobs for node in nodes])
    signal = np.stack([node.strata(node.signal("reverse_kl")) for node in nodes])
    draws = np.random.default_rng(0).uniform(size=(3, 4, 6))
    found = natural_gain(logprobs, signal, draws)
    expected = [[natural_gain(logprobs[j], signal[j], draws[i, j]) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("level", [0.0, 0.7, 1.0])
def test_nothing_to_compare_is_nan_and_never_a_random_sign(level):
    for seed in range(20):
        node = Node(seed)
        even = np.full_like(node.stratum_success, level)
        gradient, signal = node.gradient("reverse_kl"), node.signal("reverse_kl")
        assert np.isnan(score_of(node, gradient, success=even))
        # also where float32 rounding left the probabilities' sum a little off
        assert np.isnan(score_of(node, gradient, success=even, student_logprobs=node.logprobs + 2e-5))
        assert np.isnan(natural_alignment(node.logprobs, node.strata(signal), np.array(1.0), even))
        assert abs(natural_gain(node.logprobs + 2e-5, node.strata(signal), even)) < 1e-14
        assert np.isnan(score_of(node, np.zeros_like(gradient)))
        assert np.isnan(natural_alignment(node.logprobs, np.zeros(6), np.array(0.0), node.stratum_success))


def test_unknown_success_is_nan_and_not_zero():
    node = Node(0)
    success = node.stratum_success.copy()
    success[1] = np.nan
    assert np.isnan(natural_gain(node.logprobs, node.strata(node.signal("reverse_kl")), success))
    assert np.isnan(score_of(node, node.gradient("reverse_kl"), success=success))


def test_a_forgotten_tail_is_refused_with_a_remedy():
    node = Node(0)
    with pytest.raises(NormalizationError, match=r"of the student sum to 0\.\d+; expected 1 within 0\.0001: is the tail stratum missing\?"):
        natural_gain(node.logprobs[:-1], node.strata(node.signal("reverse_kl"))[:-1], node.stratum_success[:-1])
    with pytest.raises(NormalizationError, match=r"of the teacher sum to 0\.9"):
        teacher_advantage(np.log([0.5, 0.5]), np.array([0.5, 0.4]), np.array([1.0, 0.0]))
    with pytest.raises(NormalizationError, match="sum to nan"):
        natural_gain(np.array([0.0, np.nan]), np.zeros(2), np.zeros(2))


def test_probabilities_as_float32_log_softmax_leaves_them_are_accepted():
    torch = pytest.importorskip("torch")
    logits = 4.0 * torch.randn(2, 152_000, generator=torch.Generator().manual_seed(0))
    rows = torch.log_softmax(logits, dim=-1).double().exp()
    strata = torch.stack([rows[:, :1000].sum(-1), rows[:, 1000:].sum(-1)], dim=-1).log().numpy()
    assert natural_gain(strata, np.ones((2, 2)), np.ones((2, 2))) == pytest.approx(0.0, abs=1e-14)


def test_shapes_that_disagree_are_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"expected \(2,\) strata as in the log-probabilities, found \(3,\)"):
        natural_gain(np.log([0.5, 0.5]), np.zeros(3), np.zeros(2))
    assert issubclass(ShapeError, OpdscopeError)
    assert issubclass(NormalizationError, ValueError)
