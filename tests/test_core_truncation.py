"""Truncated objectives against automatic differentiation of TRL's own truncated loss."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from opdscope.core.gradients import pullback
from opdscope.core.truncation import largest, truncated_signal

torch = pytest.importorskip("torch")

OBJECTIVES = {"forward_kl": 0.0, "generalized_jsd(0.3)": 0.3, "reverse_kl": 1.0}


def trl_functions():
    """TRL's divergence over a support, compiled from the installed source file: importing the trainer takes ten seconds."""
    spec = importlib.util.find_spec("trl")
    if spec is None:
        pytest.skip("trl is not installed")
    path = Path(spec.submodule_search_locations[0], "experimental", "server_distillation", "server_distillation_trainer.py")
    wanted = ("_jsd_divergence", "_add_tail_bucket")
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef) and n.name in wanted]
    assert len(found) == 2
    namespace = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module(found, []), path.name, "exec"), namespace)
    return [namespace[name] for name in wanted]


@pytest.mark.parametrize("tail_bucket", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("count", [1, 3])
def test_the_push_is_the_gradient_of_trls_truncated_loss(objective: str, count: int, tail_bucket: bool) -> None:
    divergence, add_tail = trl_functions()
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (2 * torch.randn(5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    student_logprobs, teacher_logprobs = torch.log_softmax(logits, -1), torch.log_softmax(teacher, -1)
    support = student_logprobs.topk(count, dim=-1).indices
    own, other = student_logprobs.gather(-1, support), teacher_logprobs.gather(-1, support)
    mask = torch.ones_like(support, dtype=torch.bool)
    if tail_bucket:
        (own, mask_with_tail), (other, _) = add_tail(own, mask), add_tail(other, mask)
        mask = mask_with_tail
    else:
        own, other = (x - torch.logsumexp(x, dim=-1, keepdim=True) for x in (own, other))
    divergence(own, other, OBJECTIVES[objective], mask).sum().backward()
    p, q = student_logprobs.detach().exp().numpy(), teacher_logprobs.exp().numpy()
    signal = truncated_signal(p, q, largest(p, count), objective, tail_bucket)
    # TRL computes the bucket as log(1 - exp(logsumexp)), which in float64 loses a few digits where the support holds nearly everything
    np.testing.assert_allclose(pullback(p, signal), -logits.grad.numpy(), atol=1e-9)


def test_a_support_of_everything_changes_nothing_and_one_token_alone_pushes_nowhere() -> None:
    p, q = np.array([[0.5, 0.3, 0.2]]), np.array([[0.2, 0.3, 0.5]])
    everything = np.ones_like(p, dtype=bool)
    for tail_bucket in (True, False):
        push = pullback(p, truncated_signal(p, q, everything, "reverse_kl", tail_bucket))
        np.testing.assert_allclose(push, pullback(p, np.log(q / p)), atol=1e-12)
    np.testing.assert_array_equal(truncated_signal(p, q, largest(p, 1), "forward_kl", tail_bucket=False), 0.0)


def test_renormalising_can_turn_a_push_around() -> None:
    """Teacher and student agree on the order within the top two, but the teacher wants the third token: over the top two alone it seems to
    raise the first one, which it lowers."""
    p, q = np.array([0.5, 0.4, 0.1]), np.array([0.3, 0.2, 0.5])
    full = np.log(q / p)
    signal = truncated_signal(p, q, largest(p, 2), "reverse_kl", tail_bucket=False)
    assert pullback(p, full)[0] < 0 < pullback(p, signal)[0]
