"""Gain and alignment in parameters: unbiased whatever noise a group shares, and intervals that hold."""

import numpy as np
import pytest

from opdscope.core.parameters import LEAST_GROUPS, parameter_alignment
from opdscope.errors import ShapeError

_IDEAL, _PUSH = np.array([1.0, 0.0, 2.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
_COSINE = float(_IDEAL @ _PUSH / np.linalg.norm(_IDEAL) / np.linalg.norm(_PUSH))


def _drawn(source: np.random.Generator, num_groups: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Gradients whose noise goes together within a group, as that of one set of rollouts does."""
    shared = source.normal(size=(num_groups, 6))
    return _IDEAL + shared + source.normal(size=(num_groups, 6)), _PUSH + shared + source.normal(size=(num_groups, 6))


def test_gain_has_the_mean_of_the_inner_product_although_groups_share_their_noise():
    source = np.random.default_rng(0)
    found = np.array([parameter_alignment(*_drawn(source), 0.9).gain.value for _ in range(2000)])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - _IDEAL @ _PUSH) < 4 * error
    # products within groups would add a sixteenth of six coordinates' shared variance, and be noticed
    assert 4 * error < 6 / 16


def test_the_interval_of_the_alignment_holds_in_nine_of_ten_experiments():
    source = np.random.default_rng(1)
    repetitions = 1500
    found = [parameter_alignment(*_drawn(source, 24), 0.9).alignment for _ in range(repetitions)]
    share = np.mean([one.low <= _COSINE <= one.high for one in found])
    # four binomial errors on either side, and one point for Student's t on jackknife values
    assert abs(share - 0.9) < 4 * np.sqrt(0.09 / repetitions) + 0.01


def test_alignment_is_one_without_noise_and_scale_free():
    push = np.repeat(_PUSH[None], LEAST_GROUPS, axis=0)
    found = parameter_alignment(push, 7.0 * push, 0.9)
    assert found.alignment.value == pytest.approx(1.0)
    assert found.gain.value == pytest.approx(7.0 * _PUSH @ _PUSH)


def test_projection_widens_the_interval_on_both_sides():
    ideal, push = _drawn(np.random.default_rng(2), 64)
    plain, wider = (parameter_alignment(ideal, push, 0.9, error).alignment for error in (0.0, 0.01))
    assert wider.low == pytest.approx(plain.low - 0.02)
    assert wider.high == pytest.approx(min(plain.high + 0.02, 1.0))


def test_too_few_groups_say_nothing():
    few = np.ones((LEAST_GROUPS - 1, 6))
    assert np.isnan(parameter_alignment(few, few, 0.9).alignment.value)


def test_gradients_of_other_groups_are_refused():
    with pytest.raises(ShapeError, match="same groups and coordinates"):
        parameter_alignment(np.ones((4, 6)), np.ones((5, 6)), 0.9)
