"""The map from signals to logits: its invariances, and the ideal gradient as the derivative of the node's value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opdscope.core.gradients import distillation_gradient, ideal_gradient, pullback

OBJECTIVES = ("reverse_kl", "forward_kl", "generalized_jsd(0.1)", "generalized_jsd(0.5)", "generalized_jsd(0.9)")
LOGITS = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, (size,), elements=st.floats(-8, 8, allow_subnormal=False)) for _ in range(2)])
)
FLOAT64 = 1e-13
"""A dozen terms of size up to 8: rounding below 12 · 8 · 1.1e-16 each way."""

few = settings(max_examples=60, deadline=None, derandomize=True)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@few
@given(LOGITS)
def test_pullback_sums_to_zero(pair):
    probs, signal = np.exp(log_softmax(pair[0])), pair[1]
    assert abs(pullback(probs, signal).sum()) <= FLOAT64


@few
@given(LOGITS, st.floats(-100, 100))
def test_a_constant_added_to_the_signal_changes_nothing(pair, constant):
    probs, signal = np.exp(log_softmax(pair[0])), pair[1]
    # adding the constant itself rounds at 1e-16 of it, and the mean may be off by as much in each of the dozen terms
    np.testing.assert_allclose(pullback(probs, signal + constant), pullback(probs, signal), rtol=0, atol=FLOAT64 * (1 + abs(constant)))


@few
@given(LOGITS, st.randoms(use_true_random=False))
def test_relabelling_tokens_relabels_the_gradient(pair, random):
    student, teacher = (log_softmax(logits) for logits in pair)
    order = np.array(random.sample(range(len(student)), len(student)))
    for objective in OBJECTIVES:
        moved = distillation_gradient(student[order], teacher[order], objective)
        np.testing.assert_allclose(moved, distillation_gradient(student, teacher, objective)[order], rtol=0, atol=FLOAT64)


@few
@given(LOGITS)
def test_a_teacher_equal_to_the_student_pushes_nowhere(pair):
    rows = log_softmax(pair[0])
    for objective in OBJECTIVES:
        # reverse KL and forward KL are exact; the JSD signal is log(1-β+β), zero up to one rounding
        np.testing.assert_allclose(distillation_gradient(rows, rows, objective), 0.0, atol=1e-15)


@few
@given(LOGITS)
def test_no_objective_pushes_away_from_the_teacher(pair):
    student, teacher = (log_softmax(logits) for logits in pair)
    for objective in OBJECTIVES:
        # every signal rises with log q - log p, and two rising functions of one variable have a covariance of at least zero
        gradient = distillation_gradient(student, teacher, objective)
        assert np.sum(gradient * (teacher - student)) >= -FLOAT64


def test_pullback_ignores_signals_of_impossible_tokens():
    probs = np.array([0.5, 0.5, 0.0, 0.0, 0.0])
    for value in (np.inf, -np.inf, np.nan):
        found = pullback(probs, np.array([1.0, 0.0, value, value, 3.0]))
        np.testing.assert_array_equal(found, [0.25, -0.25, 0.0, 0.0, 0.0])


def test_pullback_works_row_by_row():
    generator = np.random.default_rng(0)
    probs, signal = generator.dirichlet(np.ones(6), size=(3, 4)), generator.normal(size=(3, 4, 6))
    rows = np.array([[pullback(p, f) for p, f in zip(ps, fs, strict=True)] for ps, fs in zip(probs, signal, strict=True)])
    np.testing.assert_allclose(pullback(probs, signal), rows, rtol=0, atol=1e-15)


def test_pullback_is_the_transposed_softmax_jacobian():
    generator = np.random.default_rng(1)
    probs, signal = generator.dirichlet(np.ones(6)), generator.normal(size=6)
    np.testing.assert_allclose(pullback(probs, signal), (np.diag(probs) - np.outer(probs, probs)) @ signal, rtol=0, atol=1e-15)


def test_ideal_gradient_is_the_derivative_of_the_nodes_value():
    generator = np.random.default_rng(2)
    logits, success, step = generator.normal(size=9), generator.uniform(size=9), 1e-5

    def value(moved):
        return np.sum(np.exp(log_softmax(moved)) * success)

    numeric = [(value(logits + shift) - value(logits - shift)) / (2 * step) for shift in step * np.eye(9)]
    # truncation step² ~ 1e-10 times a third derivative below 1/6, rounding 1e-16 / step ~ 1e-11
    np.testing.assert_allclose(ideal_gradient(np.exp(log_softmax(logits)), success), numeric, rtol=0, atol=2e-10)


def test_ideal_gradient_vanishes_where_all_tokens_succeed_equally_often():
    probs = np.random.default_rng(3).dirichlet(np.ones(50))
    # the value is 0.7 up to rounding
    np.testing.assert_allclose(ideal_gradient(probs, np.full(50, 0.7)), 0.0, atol=1e-15)


def test_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="expected reverse_kl, forward_kl or generalized_jsd"):
        distillation_gradient(np.log([0.5, 0.5]), np.log([0.5, 0.5]), "mse")
