r"""TRL's chunked divergence loss with a weight on every token, and what its own pass over the vocabulary says of every token for free.

The loss is :math:`\sum_t w_t D_t / N` with the divergence :math:`D_t` at each position and N the number of *valid* tokens, as TRL counts them: the
weights do not enter the normaliser, so that weight 1 everywhere is TRL's loss and weight 0 takes a token's push away without making
the others' larger.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from opdscope.core.divergences import check_objective, split_objective
from opdscope.errors import TrainingError


@dataclass(frozen=True)
class ScoredRows:
    """Valid response tokens of one loss computation, one entry a token in the order of responses and positions; nothing has a gradient."""

    row: torch.Tensor
    """Which response of the batch each token belongs to, [token]."""
    position: torch.Tensor
    """Its place in the response, from 0, [token]."""
    token_ids: torch.Tensor
    """The token that was taken, [token]."""
    student_logprob: torch.Tensor
    """Natural-log probability of the taken token under the student, [token]."""
    teacher_logprob: torch.Tensor
    """The same under the teacher, with its own prompt, [token]."""
    entropy: torch.Tensor
    """The student's entropy in nats, [token]."""
    divergence: torch.Tensor
    """Divergence of the objective in nats, before weights, [token]."""
    signal: torch.Tensor
    """Signal of the objective at the taken token minus its mean under the student, [token]; see METHOD of screening."""
    reverse_kl: torch.Tensor
    """KL(student ‖ teacher) in nats: exact while the objective is reverse KL, else its unbiased estimate from the taken token, [token]."""
    outcomes: torch.Tensor
    """Reward of each response; 1 right, 0 wrong, NaN unknown or no reward function, [row]."""
    has_context: torch.Tensor
    """False where the teacher has no context for the question, so that the row has weight 0, [row]."""
    questions: torch.Tensor
    """Number of each response's question, from :func:`opdscope.training.curriculum.question_number`, [row]."""
    num_rows: int
    """Responses in the batch."""

    @property
    def sharpening_signal(self) -> torch.Tensor:
        r"""Signal of the sharpened student, :math:`\log p_y + H(p)`, centred: the null teacher that costs nothing, [token]."""
        return self.student_logprob + self.entropy


TokenWeights = Callable[[ScoredRows], torch.Tensor]
"""From the tokens of a batch to a weight ≥ 0 for each of them."""

Observer = Callable[[ScoredRows, torch.Tensor], None]
"""Is shown the tokens of a batch and the weights that the loss gave them."""


def beta_of(objective: str) -> float:
    """TRL's `beta` of an objective's name: 0 forward KL, 1 reverse KL.

    Raises:
        TrainingError: If there is no such objective.

    Example:
        >>> beta_of("generalized_jsd(0.5)")
        0.5
    """
    try:
        check_objective(objective)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    base, beta = split_objective(objective)
    return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(base, 0.0) if beta is None else beta


def objective_of(beta: float) -> str:
    """Name of the objective with TRL's `beta`; the inverse of :func:`beta_of`."""
    return {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), f"generalized_jsd({beta:g})")


def centred_signal(log_ratio: torch.Tensor, aux: torch.Tensor, beta: float) -> torch.Tensor:
    r"""Signal at the taken token minus its mean under the student.

    Args:
        log_ratio: :math:`\log q_y - \log p_y` at each position, [token].
        aux: What the kernel keeps per position: KL(p ‖ q) for `beta` 1, KL(p ‖ m) in between; not used for `beta` 0, [token].
        beta: 0 = forward KL, 1 = reverse KL.

    Notes:
        Reverse KL: f = log q - log p has mean -KL(p ‖ q). Forward KL: f = q / p has mean 1. Generalised JSD: f = (1 - β)(log m - log p) has
        mean -(1 - β) KL(p ‖ m). See :mod:`opdscope.core.divergences`.
    """
    if beta == 1.0:
        return log_ratio + aux
    if beta == 0.0:
        return torch.exp(log_ratio) - 1.0
    log_mixture = torch.logaddexp(torch.full_like(log_ratio, math.log(1.0 - beta)), log_ratio + math.log(beta))
    return (1.0 - beta) * (log_mixture + aux)


@dataclass(frozen=True)
class LossRequest:
    """What the trainer knows of the batch whose loss is being computed, beyond what TRL hands to the loss."""

    completion_ids: torch.Tensor
    """[row, position]."""
    outcomes: torch.Tensor
    """[row]."""
    questions: torch.Tensor
    """[row]."""
    has_context: torch.Tensor
    """False where the teacher has no context for the question: the row gets weight 0, [row]."""
    row_weights: torch.Tensor
    """Weight of whole responses, [row]."""
    token_weights: TokenWeights | None
    """Further weights."""
    observers: tuple[Observer, ...]
    """Who is shown the tokens."""
    teacher_temperature: float
    """Of the teacher's softmax, on top of the policy's."""


@dataclass(frozen=True)
class _Side:
    """Hidden states of the valid tokens of student or teacher, and how they become logits."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, states: torch.Tensor, valid: torch.Tensor, weight: Any, options: Mapping[str, Any], who: str) -> "_Side":
        bias = options.get(f"{who}_lm_head_bias")
        if hasattr(weight, "full_tensor"):  # a sharded head, gathered once as in TRL's own loss
            weight, bias = weight.full_tensor().to(states.dtype), None if bias is None else bias.full_tensor()
        scale, softcap = options.get(f"{who}_logit_scale", 1.0), options.get(f"{who}_final_logit_softcapping")
        return cls(states.reshape(-1, states.shape[-1])[valid], weight, bias, scale, softcap)

    def logit(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Of one token at each position, before any temperature."""
        logit = torch.einsum("nh,nh->n", self.hidden.float(), self.weight[token_ids].float())
        logit = self.scale * (logit if self.bias is None else logit + self.bias[token_ids].float())
        return logit if self.softcap is None else self.softcap * torch.tanh(logit / self.softcap)


def weighted_divergence_loss(
    request: LossRequest,
    student_hidden_states: torch.Tensor,
    teacher_hidden_states: torch.Tensor,
    student_lm_head_weight: torch.Tensor,
    teacher_lm_head_weight: torch.Tensor,
    completion_mask: torch.Tensor,
    beta: float,
    num_items_in_batch: torch.Tensor | int | None = None,
    temperature: float = 1.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In place of TRL's `_chunked_divergence_loss`, with the same arguments after the first and the same results.

    Args:
        request: The batch and its weights.
        student_hidden_states: [row, position, hidden], aligned to the completion.
        teacher_hidden_states: [row, position, teacher's hidden].
        student_lm_head_weight: [vocab, hidden].
        teacher_lm_head_weight: [vocab, teacher's hidden].
        completion_mask: 1 at valid tokens, [row, position].
        beta: 0 = forward KL, 1 = reverse KL.
        num_items_in_batch: Valid tokens of the whole optimizer step; None divides by those at hand.
        temperature: Of both softmaxes.
        **options: TRL's further settings of the two heads: bias, logit scale and softcapping.

    Returns:
        Loss, sum of the student's entropy in nats, and number of valid tokens. While evaluating (no gradient) all weights are 1.
    """
    valid = completion_mask.reshape(-1) != 0
    student = _Side.of(student_hidden_states, valid, student_lm_head_weight, options, "student")
    teacher = _Side.of(teacher_hidden_states, valid, teacher_lm_head_weight, options, "teacher")
    teacher = replace(teacher, scale=teacher.scale / request.teacher_temperature)
    divergence, entropy = ChunkedDivergenceFunction.apply(
        student.hidden, student.weight, student.bias, teacher.hidden, teacher.weight, teacher.bias, beta, temperature,
        student.scale, student.softcap, teacher.scale, teacher.softcap,
    )  # fmt: skip
    loss = divergence
    if divergence.grad_fn is not None:
        rows = _scored(request, valid, student, teacher, divergence, entropy, beta, temperature)
        weights = checked_weights(request.row_weights * request.has_context, request.token_weights, rows)
        loss = divergence * weights
        for observer in request.observers:
            observer(rows, weights)
    num_valid = valid.sum()
    total = num_valid.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return loss.sum() / (total.to(loss.device) if isinstance(total, torch.Tensor) else total), entropy.sum(), num_valid


def check_kernel() -> None:
    """Refuse a TRL whose kernel does not keep the normalisers where this package reads them.

    Raises:
        TrainingError: If a small case comes out different from a plain softmax.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 4, generator=generator), torch.randn(7, 4, generator=generator)
    with torch.enable_grad():
        divergence, _ = ChunkedDivergenceFunction.apply(
            hidden.clone().requires_grad_(), weight, None, hidden * 0.5, weight, None, 1.0, 1.0, 1.0, None, 1.0, None
        )
    saved = getattr(divergence.grad_fn, "saved_tensors", ())
    expected = torch.logsumexp(hidden @ weight.T, -1), torch.logsumexp(0.5 * hidden @ weight.T, -1), divergence.detach()
    if len(saved) != 9 or not all(torch.allclose(x, y, atol=1e-4) for x, y in zip(saved[6:], expected, strict=True)):
        raise TrainingError(
            "the installed trl computes its distillation loss in a way that opdscope does not know; install trl 1.16, or a later opdscope"
        )


@torch.no_grad()
def _scored(
    request: LossRequest, valid: torch.Tensor, student: _Side, teacher: _Side,
    divergence: Any, entropy: torch.Tensor, beta: float, temperature: float,
) -> ScoredRows:  # fmt: skip
    """What the kernel computed on its way: it keeps both normalisers and the mean signal for its backward pass."""
    student_log_z, teacher_log_z, aux = divergence.grad_fn.saved_tensors[6:9]
    num_rows, length = request.completion_ids.shape
    index = valid.nonzero()[:, 0]
    taken = request.completion_ids.reshape(-1)[valid]
    own, other = student.logit(taken) / temperature - student_log_z, teacher.logit(taken) / temperature - teacher_log_z
    return ScoredRows(
        row=index // length,
        position=index % length,
        token_ids=taken,
        student_logprob=own,
        teacher_logprob=other,
        entropy=entropy.detach(),
        divergence=divergence.detach(),
        signal=centred_signal(other - own, aux, beta),
        reverse_kl=aux if beta == 1.0 else own - other,
        outcomes=request.outcomes,
        has_context=request.has_context,
        questions=request.questions,
        num_rows=num_rows,
    )


def checked_weights(row_weights: torch.Tensor, token_weights: TokenWeights | None, rows: ScoredRows) -> torch.Tensor:
    """Weight of every token, [token]: that of its response times its own.

    Raises:
        TrainingError: If `token_weights` returns anything but one weight per token.
    """
    weights = row_weights.to(rows.divergence)[rows.row]
    if token_weights is None:
        return weights
    own = token_weights(rows).to(weights)
    if own.shape != weights.shape:
        raise TrainingError(f"token_weights must return one weight per token, {weights.shape[0]}, found the shape {tuple(own.shape)}")
    return weights * own
