"""SDFT and SDPO trainers of TRL, opened for the monitor, for weights and masks, a curriculum, and changes of objective and context mid-run.

Their loss reads whole logits, from which the rows are made: one more softmax over the vocabulary for student and teacher, which the trainer's own
loss also computes. A weight multiplies a token's loss and does not enter the divisor, each response's number of tokens, so that weight 1
everywhere is TRL's loss, and weight 0 takes a token's push away without making the others' larger.
"""

import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from opdscope.errors import TrainingError
from opdscope.training.curriculum import check_curriculum, in_order, question_key, question_number
from opdscope.training.guard import Part
from opdscope.training.loss import Observer, ScoredRows, TokenWeights, beta_of, centred_signal, checked_weights, objective_of
from opdscope.training.outcomes import RewardFunction, check_outcome_weights, cut_off, judge, weights_by_outcome
from opdscope.training.teacher_prompts import PLAIN, TeacherPrompt, check_context, check_prompts, teacher_rows

OWN = "privileged_context"
"""Name of the context that the trainer makes itself: SDFT from the column of this name, SDPO from the group's successes."""

_LOSSES = (
    "compute_topk_self_distillation_loss",
    "compute_full_logit_self_distillation_loss",
    "compute_sampled_token_self_distillation_loss",
)
"""Functions of TRL's trainers that return a loss per token."""


def expose_rollouts(
    trainer: Any,
    *,
    reward_func: RewardFunction | None = None,
    teacher_prompts: Mapping[str, TeacherPrompt] | None = None,
    context: str = OWN,
    objective: str | None = None,
    outcome_weights: Mapping[str, float] | None = None,
    token_weights: TokenWeights | None = None,
    curriculum: Sequence[Sequence[str]] = (),
) -> "Exposed":
    """Open a SDFT or SDPO trainer, before it trains; :func:`opdscope.training.watch` then finds what it needs at `trainer.exposed`.

    The arguments are those of :class:`~opdscope.training.distillation.MonitoredDistillationTrainer`, so that
    :func:`~opdscope.training.recipe.recipe_settings` fits.

    Args:
        trainer: TRL's trainer with a teacher in the same process.
        reward_func: Judges the student's completions, for SDFT, which has no rewards; SDPO's own are taken.
        teacher_prompts: Further contexts for SDFT, by name: columns with the teacher's whole prompt, or functions of a row. `privileged_context`,
            the trainer's own, and `plain` always exist. SDPO makes its teacher's context from the group's outcomes and has no others.
        context: Which of them the teacher is shown at first.
        objective: Of :mod:`opdscope.core.divergences`; None takes `args.distillation_alpha`.
        outcome_weights: Weight of the tokens of `correct`, `incorrect`, `truncated` and `unverifiable` responses; 1 if not given.
        token_weights: From the tokens of a batch to their weights; a mask is weights of 0 and 1.
        curriculum: Batches of question ids, in the order in which they are trained on, equally long; the data set needs `question_id`.

    Returns:
        The handle by which objective, context and weights may be changed mid-run.

    Raises:
        TrainingError: If the trainer is another one, its teacher is on a server, its rollouts are not the student's, or a setting is wrong.
    """
    names = [base.__name__ for base in type(trainer).__mro__]
    if not {"SDFTTrainer", "SDPOTrainer"} & set(names):
        raise TrainingError(f"expected TRL's SDFTTrainer or SDPOTrainer, found a {type(trainer).__name__}")
    if getattr(trainer, "use_teacher_server", False):
        raise TrainingError("the teacher's logits are on a server; set use_teacher_server=False to watch or weigh this run")
    if getattr(trainer, "generate_from_teacher", False):
        raise TrainingError(
            "the rollouts are the teacher's; set generate_from_teacher=False, because gain and weights are about the student's own"
        )
    mixes = "SDPOTrainer" in names
    if mixes and (teacher_prompts or context != OWN):
        raise TrainingError(
            "SDPO makes its teacher's context from the outcomes of a group, and has no others; leave teacher_prompts and context out"
        )
    if mixes and reward_func is not None:
        raise TrainingError("SDPO has rewards of its own, which are taken; leave reward_func out")
    prompts = dict(teacher_prompts or {})
    check_prompts(prompts, trainer.train_dataset)
    check_curriculum(curriculum, trainer.train_dataset)
    has_outcomes = mixes or reward_func is not None
    weights = check_outcome_weights(outcome_weights or {}, has_outcomes)
    exposed = Exposed(trainer, reward_func, prompts, weights, token_weights, has_outcomes, mixes)
    exposed.context = context
    if objective is not None:
        exposed.objective = objective
    exposed.attach(curriculum)
    trainer.exposed = exposed
    return exposed


class Exposed:
    """What :func:`expose_rollouts` makes of a trainer."""

    def __init__(
        self,
        trainer: Any,
        reward_func: RewardFunction | None,
        teacher_prompts: dict[str, TeacherPrompt],
        outcome_weights: dict[str, float],
        token_weights: TokenWeights | None,
        has_outcomes: bool,
        is_mixed: bool,
    ) -> None:
        self.observers: list[Observer] = []
        """Who is shown every batch; may be changed mid-run."""
        self.question_ids: dict[int, str] = {}
        """Id of each question seen so far, by its number."""
        self.token_weights = token_weights
        """May be changed mid-run."""
        self.has_outcomes = has_outcomes
        """Whether responses are verified."""
        self._trainer, self._reward_func, self._prompts = trainer, reward_func, teacher_prompts
        self._outcome_weights = outcome_weights
        self._is_weighted = any(weight != 1.0 for weight in outcome_weights.values()) or bool(teacher_prompts)
        self.contexts: tuple[str, ...] = (OWN,) if is_mixed else (OWN, PLAIN, *teacher_prompts)
        """Names of all contexts."""
        self._context = OWN
        self._inputs: Sequence[Mapping[str, Any]] = ()
        self._has_context: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self._watching = Part("reading of the trainer's logits")

    @property
    def objective(self) -> str:
        """Name of the objective; assigning another one takes effect with the next loss. The sampled-token loss is reverse KL in expectation."""
        args = self._trainer.args
        return objective_of(1.0 if args.distillation_mode == "sampled_token" else float(args.distillation_alpha))

    @objective.setter
    def objective(self, name: str) -> None:
        self._trainer.args.distillation_alpha = self.check_objective(name)

    def check_objective(self, name: str) -> float:
        """TRL's `distillation_alpha` of an objective.

        Raises:
            TrainingError: If there is no such objective, or the trainer cannot have it.
        """
        beta = beta_of(name)
        if self._trainer.args.distillation_mode == "sampled_token" and beta != 1.0:
            raise TrainingError(f"distillation_mode='sampled_token' is reverse KL and cannot become {name}; set it to 'full_logits'")
        return beta

    @property
    def context(self) -> str:
        """Name of the context that the teacher is shown; assigning another one takes effect with the next generated batch."""
        return self._context

    @context.setter
    def context(self, name: str) -> None:
        self._context = check_context(name, self.contexts)

    def attach(self, curriculum: Sequence[Sequence[str]]) -> None:
        """Put what is needed around the methods of this one trainer."""
        trainer = self._trainer
        prepare, logits = trainer._prepare_training_batch, trainer._compute_teacher_student_logits
        loss, build, loader = trainer._compute_self_distillation_loss, trainer.teacher_context_builder.build, trainer.get_train_dataloader

        def prepared(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            self._inputs, self._has_context = inputs, None
            return self._completed(prepare(inputs))

        def built(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            return build(*args, **kwargs) if self._context == OWN else self._built(args[2], args[3])

        def computed(model: Any, teacher_model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
            found = logits(model, teacher_model, inputs)
            if torch.is_grad_enabled():
                self._show(found, inputs)
            return found

        def lost(*args: Any, **kwargs: Any) -> Any:
            with _weighted(loss, self._weights if torch.is_grad_enabled() else None):
                return loss(*args, **kwargs)

        def loaded() -> Any:
            with in_order(trainer, curriculum):
                return loader()

        trainer._prepare_training_batch, trainer._compute_teacher_student_logits = prepared, computed
        trainer._compute_self_distillation_loss, trainer.teacher_context_builder.build, trainer.get_train_dataloader = lost, built, loaded

    def _completed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """TRL's batch with further rows, which are split along."""
        numbers = [question_number(row) for row in self._inputs]
        self.question_ids.update((number, question_key(row)) for number, row in zip(numbers, self._inputs, strict=True))
        device = batch["completion_ids"].device
        batch["questions"] = torch.tensor(numbers, device=device)
        rewards = batch.get("rewards")
        judged = (
            judge(self._reward_func, self._inputs, batch, self._trainer.processing_class.batch_decode)
            if rewards is None
            else rewards.float()
        )
        batch["outcomes"], batch["truncated"] = judged, cut_off(batch, self._trainer.eos_token_ids)
        shown = torch.ones_like(judged, dtype=torch.bool) if self._has_context is None else self._has_context
        own = batch.get("self_distillation_mask")  # SDPO has no context for a question that nobody solved
        batch["has_context"] = shown if own is None else shown & (own != 0)
        return batch

    def _built(self, completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """What SDFT's own builder returns, for another context."""
        trainer, prompt = self._trainer, self._prompts.get(self._context, "prompt")
        rows = teacher_rows(self._inputs, prompt, trainer._tokenize_prompts, trainer._tokenizer.pad_token_id, completion_ids.device)
        self._has_context = rows["has_context"]
        return {
            "teacher_input_ids": torch.cat([rows["teacher_prompt_ids"], completion_ids], dim=1),
            "teacher_attention_mask": torch.cat([rows["teacher_prompt_mask"], completion_mask], dim=1),
        }

    def _show(self, logits: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """Make the rows and their weights, and show them to the observers.

        Where nothing is weighted this only watches: a failure, such as of memory for another softmax, then ends the watching and not the training.
        """
        self._weights = None
        if self._is_weighted or self.token_weights is not None:
            rows, weights = self._judged(logits, inputs)
            self._weights = torch.zeros_like(logits.loss_mask, dtype=weights.dtype)
            self._weights[rows.row, rows.position] = weights
            for observer in self.observers:
                observer(rows, weights)
        elif self.observers and self._watching.is_on:
            with self._watching.trying():
                rows, weights = self._judged(logits, inputs)
                for observer in self.observers:
                    observer(rows, weights)

    def _judged(self, logits: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[ScoredRows, torch.Tensor]:
        rows = self._rows(logits, inputs)
        own = weights_by_outcome(self._outcome_weights, rows.outcomes, inputs["truncated"])
        return rows, checked_weights(own * rows.has_context, self.token_weights, rows)

    @torch.no_grad()
    def _rows(self, logits: Any, inputs: Mapping[str, torch.Tensor]) -> ScoredRows:
        # SDFT's loss leaves out the first tokens; a response without a context has no loss, but an outcome and a length
        valid = (logits.loss_mask != 0) | ((inputs["completion_mask"] != 0) & ~inputs["has_context"][:, None])
        row, position = valid.nonzero(as_tuple=True)
        taken, beta = logits.completion_ids[valid], beta_of(self.objective)
        student = torch.log_softmax(logits.student_logits[valid].float(), dim=-1)
        teacher = torch.log_softmax(logits.teacher_logits[valid].float(), dim=-1)
        reverse_kl = _kl(student, teacher)
        if 0.0 < beta < 1.0:
            mixture = torch.logaddexp(student + math.log(1.0 - beta), teacher + math.log(beta))
            aux = _kl(student, mixture)
            divergence = (1.0 - beta) * aux + beta * _kl(teacher, mixture)
        else:
            aux, divergence = reverse_kl, reverse_kl if beta == 1.0 else _kl(teacher, student)
        own, other = (values.gather(-1, taken[:, None])[:, 0] for values in (student, teacher))
        return ScoredRows(
            row=row, position=position, token_ids=taken, student_logprob=own, teacher_logprob=other, entropy=-(student.exp() * student).sum(-1),
            divergence=divergence, signal=centred_signal(other - own, aux, beta), reverse_kl=reverse_kl, outcomes=inputs["outcomes"],
            has_context=inputs["has_context"], questions=inputs["questions"], num_rows=valid.shape[0],
        )  # fmt: skip


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first ‖ second) at each token, from log-probabilities."""
    return (first.exp() * (first - second)).sum(-1)


@contextmanager
def _weighted(loss: Callable[..., Any], weights: torch.Tensor | None) -> Generator[None]:
    """Multiply what TRL's functions return per token, [row, position], while its loss is computed."""
    if weights is None:
        yield
        return
    module = sys.modules[loss.__module__]
    originals = {name: getattr(module, name) for name in _LOSSES}

    def times(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args, **kwargs: original(*args, **kwargs) * weights

    for name, original in originals.items():
        setattr(module, name, times(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
