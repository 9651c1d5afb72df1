"""The student at another temperature: a teacher that knows nothing, and whose push has one direction only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from opdscope.core.alignment import natural_gain
from opdscope.core.divergences import entropy, reverse_kl_signal
from opdscope.core.gradients import distillation_gradient
from opdscope.core.nulls import tempered

ROWS = arrays(np.float64, (3, 7), elements=st.floats(-10, 10, allow_subnormal=False)).map(lambda logits: log_softmax(logits, axis=-1))
few = settings(max_examples=60, deadline=None, derandomize=True)

ROUNDING = 1e-12
"""Log-probabilities up to 20, divided by temperatures down to 0.1: 200 · 1e-16, with a margin for the sum."""


@few
@given(ROWS, st.floats(0.1, 10))
def test_tempering_is_log_softmax_of_scaled_log_probabilities(rows, temperature):
    np.testing.assert_allclose(tempered(rows, temperature), log_softmax(rows / temperature, axis=-1), rtol=0, atol=ROUNDING)


@few
@given(ROWS)
def test_temperature_one_is_the_student(rows):
    np.testing.assert_allclose(tempered(rows, 1.0), rows, rtol=0, atol=ROUNDING)


@few
@given(ROWS, st.floats(0.1, 10), st.floats(0.1, 10))
def test_temperatures_multiply(rows, first, second):
    np.testing.assert_allclose(tempered(tempered(rows, first), second), tempered(rows, first * second), rtol=0, atol=100 * ROUNDING)


@few
@given(ROWS, st.floats(0.1, 10))
def test_reverse_kl_signal_of_a_tempered_student_is_its_own_log_probability_scaled(rows, temperature):
    rest = reverse_kl_signal(rows, tempered(rows, temperature)) - (1 / temperature - 1) * rows
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:, :1], rest.shape), rtol=0, atol=100 * ROUNDING)


def test_reverse_kl_gain_of_one_temperature_gives_that_of_all_others():
    generator = np.random.default_rng(0)
    student, success = log_softmax(generator.normal(size=9)), generator.uniform(size=9)

    def gain(temperature):
        return float(natural_gain(student, reverse_kl_signal(student, tempered(student, temperature)), success))

    for temperature in (0.3, 0.9, 4.0):
        assert gain(temperature) / (1 / temperature - 1) == pytest.approx(gain(0.5), rel=1e-10)  # 1/.5 - 1 = 1
    gradients = [distillation_gradient(student, tempered(student, t), "reverse_kl") for t in (0.5, 4.0)]
    np.testing.assert_allclose(gradients[1], -0.75 * gradients[0], rtol=0, atol=ROUNDING)


@few
@given(ROWS, st.floats(0.1, 0.95), st.floats(1.05, 10))
def test_entropy_falls_below_one_and_rises_above(rows, sharper, flatter):
    # equality only for rows that are uniform already, up to rounding
    assert np.all(entropy(tempered(rows, sharper)) <= entropy(rows) + ROUNDING)
    assert np.all(entropy(tempered(rows, flatter)) >= entropy(rows) - ROUNDING)


def test_entropy_changes_strictly_for_an_uneven_row():
    row = np.log([0.7, 0.2, 0.1])
    assert entropy(tempered(row, 0.5)) < entropy(row) - 0.1
    assert entropy(tempered(row, 2.0)) > entropy(row) + 0.1


def test_impossible_tokens_stay_impossible():
    with np.errstate(divide="ignore"):
        row = np.log([0.8, 0.2, 0.0])
    np.testing.assert_allclose(np.exp(tempered(row, 0.5)), [0.64 / 0.68, 0.04 / 0.68, 0.0], rtol=1e-14)


def test_torch_rows_are_tempered_alike():
    torch = pytest.importorskip("torch")
    row = np.log([[0.7, 0.2, 0.1]])
    np.testing.assert_allclose(tempered(torch.tensor(row), 0.5).numpy(), tempered(row, 0.5), rtol=1e-14)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        tempered(np.log([0.5, 0.5]), temperature)
