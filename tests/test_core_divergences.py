"""Objectives against automatic differentiation of their own definition, against TRL's loss, and against each other."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from opdscope.core.divergences import (
    check_objective,
    entropy,
    forward_kl_signal,
    generalized_jsd_signal,
    kl_divergence,
    reverse_kl_signal,
    signal_of,
    split_objective,
)
from opdscope.core.gradients import distillation_gradient, pullback

torch = pytest.importorskip("torch")

BETAS = (0.1, 0.5, 0.9)
OBJECTIVES = ("reverse_kl", "forward_kl", *(f"generalized_jsd({beta})" for beta in BETAS))

FLOAT64 = 1e-12
"""Sums of some ten terms of order one: rounding of a few 1e-16 each, so 1e-12 leaves a thousandfold margin."""


def logits_pair(seed=0, batch=4, vocab=11, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, vocab, generator=generator, dtype=torch.float64) for _ in range(2)]


def loss_by_definition(objective, student_probs, teacher_probs):
    """The divergence as the literature writes it, with no simplification shared with the code under test."""
    p, q = student_probs, teacher_probs
    base, beta = split_objective(objective)
    if base == "reverse_kl":
        return torch.sum(p * torch.log(p / q))
    if base == "forward_kl":
        return torch.sum(q * torch.log(q / p))
    m = beta * q + (1 - beta) * p
    return torch.sum(beta * q * torch.log(q / m) + (1 - beta) * p * torch.log(p / m))


def trl_generalized_jsd_loss():
    """TRL's function, compiled from the source file that is installed: importing the trainer itself takes ten seconds."""
    spec = importlib.util.find_spec("trl")
    if spec is None:
        pytest.skip("trl is not installed")
    source = Path(spec.submodule_search_locations[0], "experimental", "gkd", "gkd_trainer.py").read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == "generalized_jsd_loss"]
    assert len(found) == 1
    found[0].decorator_list = []
    namespace = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module(found, []), "gkd_trainer.py", "exec"), namespace)
    return namespace["generalized_jsd_loss"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_is_minus_autograd_of_the_loss(objective):
    student, teacher = logits_pair()
    student.requires_grad_()
    loss = loss_by_definition(objective, torch.softmax(student, -1), torch.softmax(teacher, -1))
    (expected,) = torch.autograd.grad(loss, student)
    found = distillation_gradient(torch.log_softmax(student.detach(), -1), torch.log_softmax(teacher, -1), objective)
    torch.testing.assert_close(found, -expected, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_signal_is_minus_the_derivative_by_the_probabilities_up_to_a_constant(objective):
    student, teacher = (torch.softmax(logits, -1) for logits in logits_pair(seed=1))
    student.requires_grad_()
    (derivative,) = torch.autograd.grad(loss_by_definition(objective, student, teacher), student)
    difference = signal_of(objective)(torch.log(student.detach()), torch.log(teacher)) + derivative
    # forward KL has signals q/p of some thousands here, hence the relative part
    spread = (difference - difference.mean(-1, keepdim=True)).abs()
    assert bool((spread <= FLOAT64 * (1 + derivative.abs().amax(-1, keepdim=True))).all())


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize(("beta", "objective"), [(0.0, "forward_kl"), *((b, f"generalized_jsd({b})") for b in BETAS), (1.0, "reverse_kl")])
def test_gradient_is_minus_autograd_of_trls_own_loss(beta, objective, temperature):
    loss_function = trl_generalized_jsd_loss()
    student, teacher = logits_pair(seed=2)
    student.requires_grad_()
    # the sum over everything, so that each row's gradient is that of its own loss
    loss = loss_function(student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum")
    (expected,) = torch.autograd.grad(loss, student)
    rows = [torch.log_softmax(logits.detach() / temperature, -1) for logits in (student, teacher)]
    # the chain rule through logits / temperature divides by the temperature; TRL casts beta to the logits' dtype, here float64
    torch.testing.assert_close(distillation_gradient(*rows, objective) / temperature, -expected, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_agrees_with_central_differences(objective):
    student, teacher = (logits[0] for logits in logits_pair(seed=3))
    step = 1e-5

    def loss(logits):
        return float(loss_by_definition(objective, torch.softmax(logits, -1), torch.softmax(teacher, -1)))

    shifts = step * torch.eye(len(student), dtype=torch.float64)
    numeric = np.array([(loss(student - shift) - loss(student + shift)) / (2 * step) for shift in shifts])
    found = distillation_gradient(torch.log_softmax(student, -1), torch.log_softmax(teacher, -1), objective)
    # truncation step² · f''' ~ 1e-10 · 10, rounding 1e-15 / step = 1e-10
    np.testing.assert_allclose(found.numpy(), numeric, rtol=0, atol=5e-9)


@pytest.mark.parametrize(("beta", "limit"), [(1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")])
def test_jsd_tends_to_forward_and_reverse_kl_in_direction(beta, limit):
    rows = [torch.log_softmax(logits, -1) for logits in logits_pair(seed=4, scale=1.0)]
    near = distillation_gradient(*rows, f"generalized_jsd({beta!r})")
    end = distillation_gradient(*rows, limit)
    cosine = torch.sum(near * end, -1) / (near.norm(dim=-1) * end.norm(dim=-1))
    # relative error of the signal is of order 1e-7 · (q/p or p/q), at most some 100 here; the cosine's error is its square, then rounding
    assert bool((cosine > 1 - 1e-8).all())
    # the size shrinks with beta (or 1 - beta): the limit is one of direction only
    torch.testing.assert_close(near.norm(dim=-1) / 1e-7, end.norm(dim=-1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_numpy_and_torch_agree_in_float64(objective):
    rows = [torch.log_softmax(logits, -1) for logits in logits_pair(seed=5)]
    arrays = [row.numpy() for row in rows]
    np.testing.assert_allclose(signal_of(objective)(*arrays), signal_of(objective)(*rows).numpy(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(
        distillation_gradient(*arrays, objective), distillation_gradient(*rows, objective).numpy(), rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(kl_divergence(*arrays), kl_divergence(*rows).numpy(), rtol=1e-13)
    np.testing.assert_allclose(entropy(arrays[0]), entropy(rows[0]).numpy(), rtol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_float32_stays_float32_and_within_its_rounding(objective):
    rows = [torch.log_softmax(logits, -1) for logits in logits_pair(seed=6)]
    single = distillation_gradient(*(row.float() for row in rows), objective)
    assert single.dtype == torch.float32
    # log-probabilities of size 10 carry 10 · 6e-8; f is a difference of two, weighted by p ≤ 1
    torch.testing.assert_close(single.double(), distillation_gradient(*rows, objective), rtol=0, atol=5e-6)


def test_jsd_signal_stays_finite_where_the_ratio_overflows_and_is_bounded_below():
    student, teacher = np.array([[0.0, -2000.0]]), np.array([[-2000.0, 0.0]])
    signal = generalized_jsd_signal(student, teacher, 0.25)
    # log m - log p is log(1-β) where q/p = 0, and 2000 + log β where q/p = e^2000
    np.testing.assert_allclose(signal, 0.75 * np.array([[np.log(0.75), 2000 + np.log(0.25)]]), rtol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_tokens_the_student_never_takes_make_no_nan_and_no_warning(objective):
    with np.errstate(divide="ignore"):
        student, teacher = np.log([0.5, 0.5, 0.0]), np.log([0.3, 0.5, 0.2])
    gradient = distillation_gradient(student, teacher, objective)
    assert np.isfinite(gradient).all()
    # forward KL pushes towards the impossible token too (its loss is infinite, its gradient q - p is not)
    np.testing.assert_allclose(gradient[2], 0.2 if objective == "forward_kl" else 0.0, atol=1e-16)
    assert kl_divergence(student, student) == 0.0
    assert np.isinf(kl_divergence(teacher, student))
    assert entropy(student) == pytest.approx(np.log(2.0), rel=1e-15)


def test_signals_match_hand_values():
    student, teacher = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.25, 0.5])
    np.testing.assert_allclose(reverse_kl_signal(student, teacher), [-np.log(2), 0.0, np.log(2)], atol=1e-15)
    np.testing.assert_allclose(forward_kl_signal(student, teacher), [0.5, 1.0, 2.0], rtol=1e-15)
    # the forward-KL signal has mean one under the student
    assert np.sum(np.exp(student) * forward_kl_signal(student, teacher)) == pytest.approx(1.0, rel=1e-15)


def test_forward_kl_closed_form_is_the_pullback_of_its_signal():
    rows = [torch.log_softmax(logits, -1) for logits in logits_pair(seed=7)]
    closed = distillation_gradient(*rows, "forward_kl")
    torch.testing.assert_close(pullback(torch.exp(rows[0]), forward_kl_signal(*rows)), closed, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "kl",
        "reverse_kl(0.5)",
        "generalized_jsd",
        *(f"generalized_jsd({rest}" for rest in (")", "x)", "0.5", "0.5))", "0)", "1)", "nan)")),
    ],
)
def test_unknown_objectives_are_refused_by_name(name):
    with pytest.raises(ValueError, match="objective"):
        check_objective(name)


def test_beta_outside_the_open_interval_is_refused():
    for beta in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="strictly between 0"):
            generalized_jsd_signal(np.log([0.5, 0.5]), np.log([0.8, 0.2]), beta)
