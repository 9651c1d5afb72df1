"""SDFT and SDPO trainers of TRL, opened for the monitor and for masks: their loss reads whole logits, from which the rows are made.

Their mask is 0 or 1 and each response is divided by its own number of unmasked tokens; soft weights would change that divisor too, so only masks
are offered. Reading costs one more softmax over the vocabulary for student and teacher, which the trainer's own loss also computes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from opdscope.errors import TrainingError
from opdscope.training.loss import Observer, ScoredRows, TokenWeights, centred_signal

_KNOWN = ("SDFTTrainer", "SDPOTrainer")


def expose_rollouts(
    trainer: Any,
    *,
    outcomes: Callable[[Sequence[str]], Sequence[float | None]] | None = None,
    keep: TokenWeights | None = None,
) -> None:
    """Give a SDFT or SDPO trainer the `observers` that :func:`opdscope.training.watch` attaches to, and a mask.

    Args:
        trainer: TRL's trainer with a teacher in the same process.
        outcomes: From the decoded completions of a batch to rewards, for SDFT, which has none; SDPO's own rewards are taken. The prompts of the
            batch, in the same order, are in `trainer.exposed_prompts`.
        keep: From the tokens of a batch to 1 or 0: which of them the loss keeps.

    Raises:
        TrainingError: If the trainer is another one, or its teacher is on a server.
    """
    if not any(base.__name__ in _KNOWN for base in type(trainer).__mro__):
        raise TrainingError(f"expected TRL's SDFTTrainer or SDPOTrainer, found a {type(trainer).__name__}")
    if getattr(trainer, "use_teacher_server", False):
        raise TrainingError("the teacher's logits are on a server; set use_teacher_server=False to watch or mask this run")
    # SDPO chooses contexts by the outcomes of the group: where a rollout's own outcome decides whether it has one, its gain is biased
    trainer.observers = []
    trainer.exposed_prompts = []
    trainer.has_outcomes = outcomes is not None or hasattr(trainer, "reward_funcs")
    original = trainer._compute_teacher_student_logits

    def computed(model: Any, teacher_model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        logits = original(model, teacher_model, inputs)
        if not torch.is_grad_enabled():
            return logits
        rows = _rows(trainer, logits, inputs, outcomes)
        mask = torch.ones_like(rows.signal) if keep is None else keep(rows).to(rows.signal)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise TrainingError("this trainer's mask is 0 or 1: `keep` must return nothing else")
        observers: list[Observer] = trainer.observers
        for observer in observers:
            observer(rows, mask)
        if keep is None:
            return logits
        loss_mask = logits.loss_mask.clone()
        loss_mask[logits.loss_mask != 0] = mask.to(loss_mask)
        return replace(logits, loss_mask=loss_mask)

    trainer._compute_teacher_student_logits = computed


@torch.no_grad()
def _rows(
    trainer: Any, logits: Any, inputs: Mapping[str, torch.Tensor], outcomes: Callable[[Sequence[str]], Sequence[float | None]] | None
) -> ScoredRows:
    valid = logits.loss_mask != 0
    row, position = valid.nonzero(as_tuple=True)
    taken, beta = logits.completion_ids[valid], _beta(trainer)
    student = torch.log_softmax(logits.student_logits[valid].float(), dim=-1)
    teacher = torch.log_softmax(logits.teacher_logits[valid].float(), dim=-1)
    probs = student.exp()
    reverse_kl = (probs * (student - teacher)).sum(-1)
    aux = reverse_kl if beta == 1.0 else (probs * (student - _mixture(student, teacher, beta))).sum(-1) if beta > 0 else reverse_kl
    own, other = (values.gather(-1, taken[:, None])[:, 0] for values in (student, teacher))
    return ScoredRows(
        row=row, position=position, token_ids=taken, student_logprob=own, teacher_logprob=other, entropy=-(probs * student).sum(-1),
        divergence=reverse_kl, signal=centred_signal(other - own, aux, beta), reverse_kl=reverse_kl,
        outcomes=_outcomes(trainer, logits, inputs, outcomes), has_context=(valid.sum(-1) > 0),
        questions=_questions(inputs), num_rows=valid.shape[0],
    )  # fmt: skip


def _beta(trainer: Any) -> float:
    """`distillation_alpha` is TRL's beta; the sampled-token loss is reverse KL in expectation."""
    return 1.0 if trainer.args.distillation_mode == "sampled_token" else float(trainer.args.distillation_alpha)


def _mixture(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.logaddexp(student + torch.log(torch.tensor(1.0 - beta)), teacher + torch.log(torch.tensor(beta)))


def _outcomes(
    trainer: Any, logits: Any, inputs: Mapping[str, torch.Tensor], outcomes: Callable[[Sequence[str]], Sequence[float | None]] | None
) -> torch.Tensor:
    device = logits.completion_ids.device
    if outcomes is None:
        rewards = inputs.get("rewards")
        return torch.full((len(logits.completion_ids),), torch.nan, device=device) if rewards is None else rewards.float()
    masked = zip(logits.completion_ids, inputs["completion_mask"].bool(), strict=True)
    prompts = zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
    trainer.exposed_prompts = trainer.processing_class.batch_decode([ids[mask] for ids, mask in prompts], skip_special_tokens=True)
    texts = trainer.processing_class.batch_decode([ids[mask] for ids, mask in masked], skip_special_tokens=True)
    return torch.tensor([float("nan") if value is None else float(value) for value in outcomes(texts)], device=device)


def _questions(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Rows with equal prompts answer one question."""
    masked = inputs["prompt_ids"] * inputs["prompt_mask"]
    return torch.unique(masked, dim=0, return_inverse=True)[1]
