"""What is kept of a full-vocabulary row equals the direct formula, in numpy and in torch, and survives extreme teachers."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient
from opdscope.core.screening import RARE_PROB, StudentRows, compare_rows, reduce_rows

OBJECTIVES = ("reverse_kl", "forward_kl", "generalized_jsd(0.5)")


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3.0, size=(2, 7, 40))
    student, teacher = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return student, teacher, generator.integers(0, 40, size=7)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reduced_rows_equal_the_direct_formulas(rows, objective):
    student, teacher, taken = rows
    p, f, d = np.exp(student), signal_of(objective)(student, teacher), distillation_gradient(student, teacher, objective)
    found = reduce_rows(StudentRows.of(student), teacher, taken, objective)
    for row, token in enumerate(taken):
        # q/p reaches 1e5 here: relative rounding 1e-16 of the largest terms
        assert found.taken_signal[row] == pytest.approx(f[row, token] - np.dot(p[row], f[row]), rel=1e-11, abs=1e-11)
        assert found.taken_gradient[row] == pytest.approx(d[row, token] - np.dot(p[row], d[row]), rel=1e-11, abs=1e-14)
        variance = np.dot(p[row], f[row] ** 2) - np.dot(p[row], f[row]) ** 2
        assert found.signal_variance[row] == pytest.approx(variance, rel=1e-10)
        assert found.gradient_squared_norm[row] == pytest.approx(np.dot(d[row], d[row]), rel=1e-12)


def test_compared_rows_equal_scipys_divergences(rows):
    student, teacher, _ = rows
    p, q = np.exp(student), np.exp(teacher)
    found, own = compare_rows(StudentRows.of(student), teacher), StudentRows.of(student)
    np.testing.assert_allclose(found.reverse_kl, scipy_entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found.forward_kl, scipy_entropy(q, p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found.jensen_shannon, jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10)
    np.testing.assert_allclose(found.entropy, scipy_entropy(q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(own.entropy, scipy_entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(own.collision, np.sum(p**2, axis=-1), rtol=1e-14)
    np.testing.assert_allclose(found.rare_mass, [np.sum(b[a < RARE_PROB]) for a, b in zip(p, q, strict=True)], rtol=1e-14)
    assert (found.rare_mass > 0).any()


def test_jensen_shannon_of_disjoint_rows_is_log_two():
    with np.errstate(divide="ignore"):
        student, teacher = np.log([[0.5, 0.5, 0.0, 0.0]]), np.log([[0.0, 0.0, 0.5, 0.5]])
    found = compare_rows(StudentRows.of(student), teacher)
    np.testing.assert_allclose(found.jensen_shannon, np.log(2.0), rtol=1e-15)
    assert np.isinf(found.reverse_kl).all()
    np.testing.assert_allclose(found.rare_mass, 1.0, rtol=1e-15)


def test_divergences_are_zero_for_a_teacher_equal_to_the_student(rows):
    student, _, taken = rows
    own = StudentRows.of(student)
    found = compare_rows(own, student)
    for values in (found.reverse_kl, found.forward_kl, found.jensen_shannon):
        np.testing.assert_allclose(values, 0.0, atol=1e-15)
    for objective in OBJECTIVES:
        reduced = reduce_rows(own, student, taken, objective)
        np.testing.assert_allclose(reduced.taken_signal, 0.0, atol=1e-14)
        np.testing.assert_allclose(reduced.signal_variance, 0.0, atol=1e-28)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_torch_float32_rows_agree_with_numpy_float64(rows, objective):
    torch = pytest.importorskip("torch")
    student, teacher, taken = rows
    single = [torch.tensor(values, dtype=torch.float32) for values in (student, teacher)]
    found = reduce_rows(StudentRows.of(single[0]), single[1], torch.tensor(taken), objective)
    expected = reduce_rows(StudentRows.of(student), teacher, taken, objective)
    for name in ("taken_signal", "taken_gradient", "signal_variance", "gradient_squared_norm"):
        assert getattr(found, name).dtype == torch.float32
        # log-probabilities of size 15 carry 1e-6; so does q/p relatively, and its square twice
        np.testing.assert_allclose(getattr(found, name).numpy(), getattr(expected, name), rtol=2e-5, atol=2e-6, err_msg=name)


def test_rows_the_pipeline_meets_in_float32_stay_finite_where_the_teacher_wants_what_the_student_never_takes():
    torch = pytest.importorskip("torch")
    # p of the third token: normal but its q/p squared overflows float32; subnormal, q/p overflows; zero
    for rare in (-50.0, -95.0, -200.0, -np.inf):
        student = torch.tensor([[np.log(0.5), np.log(0.5), rare]], dtype=torch.float32)
        teacher = torch.tensor([[np.log(0.3), np.log(0.2), np.log(0.5)]], dtype=torch.float32)
        found = reduce_rows(StudentRows.of(student), teacher, torch.tensor([0]), "forward_kl")
        drawable_mass = 1.0 if rare == -50.0 else 0.5
        assert float(found.taken_signal[0]) == pytest.approx(0.6 - drawable_mass, abs=1e-6)
        assert np.isfinite(float(found.signal_variance[0]))
        if rare == -50.0:
            assert float(found.signal_variance[0]) == pytest.approx(0.25 * np.exp(50.0), rel=1e-5)
        for objective in OBJECTIVES:
            reduced = reduce_rows(StudentRows.of(student), teacher, torch.tensor([0]), objective)
            assert np.isfinite([float(reduced.taken_signal[0]), float(reduced.taken_gradient[0])]).all()
