"""TRL's `DistillationTrainer` with token weights, outcome filters, teacher contexts, and an objective and context that can change mid-run.

Everything else is TRL's: generation, accumulation, chunked loss, logging. Two of its private functions are built upon, and
:func:`opdscope.training.loss.check_kernel` refuses a version in which they mean something else.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from trl.trainer import distillation_trainer

from opdscope.errors import TrainingError
from opdscope.training.curriculum import check_curriculum, in_order, question_key, question_number
from opdscope.training.learning_rate import LearningRateFactor
from opdscope.training.loss import LossRequest, Observer, TokenWeights, beta_of, check_kernel, objective_of, weighted_divergence_loss
from opdscope.training.outcomes import RewardFunction, check_outcome_weights, cut_off, judge, weights_by_outcome
from opdscope.training.teacher_prompts import PLAIN, SwitchableContext, TeacherPrompt, check_prompts, teacher_rows

_trl: Any = distillation_trainer
_DistillationTrainer: Any = _trl.DistillationTrainer


class MonitoredDistillationTrainer(SwitchableContext, _DistillationTrainer):
    """On-policy distillation whose push can be weighted, filtered, redirected and watched."""

    def __init__(
        self,
        *args: Any,
        reward_func: RewardFunction | None = None,
        teacher_prompts: Mapping[str, TeacherPrompt] | None = None,
        context: str = PLAIN,
        objective: str | None = None,
        teacher_temperature: float = 1.0,
        outcome_weights: Mapping[str, float] | None = None,
        token_weights: TokenWeights | None = None,
        curriculum: Sequence[Sequence[str]] = (),
        distillation_weight: float = 1.0,
        observers: Sequence[Observer] = (),
        **kwargs: Any,
    ) -> None:
        """Wrap TRL's trainer; arguments that are not named here are its own.

        Args:
            *args: Positional arguments of TRL's trainer.
            reward_func: Judges the student's completions; without it outcomes are unknown.
            teacher_prompts: Contexts by name. A row without a prompt in the current context gets weight 0. `plain` always exists.
            context: Which of them the teacher is shown; see :attr:`context`.
            objective: Of :mod:`opdscope.core.divergences`; None takes `args.beta`. See :attr:`objective`.
            teacher_temperature: Of the teacher's softmax on top of the policy's: with the student as its own teacher, < 1 is the sharpened and > 1
                the flattened null.
            outcome_weights: Weight of the tokens of `correct`, `incorrect` (reward below 0.5), `truncated` (incorrect and cut off) and `unverifiable`
                responses; 1 if not given.
            token_weights: From the tokens of a batch to their weights; multiplied with the others.
            curriculum: Batches of question ids, in the order in which they are trained on, equally long; the data set needs `question_id`.
            distillation_weight: Factor λ ≥ 0 of the learning rate; see :attr:`distillation_weight`.
            observers: Are shown every batch's tokens, such as the live monitor.
            **kwargs: Keyword arguments of TRL's trainer.

        Raises:
            TrainingError: If a setting is wrong, before anything is trained.
        """
        check_kernel()
        self._reward_func, self._token_weights = reward_func, token_weights
        self._teacher_prompts: dict[str, TeacherPrompt] = dict(teacher_prompts or {})
        self._outcome_weights = check_outcome_weights(outcome_weights or {}, reward_func is not None)
        self.observers = list(observers)
        """Who is shown every batch; may be changed mid-run."""
        self.teacher_temperature = teacher_temperature
        """Of the teacher's softmax, on top of the policy's; may be changed mid-run."""
        self.question_ids: dict[int, str] = {}
        """Id of each question seen so far, by its number."""
        self._request: Mapping[str, torch.Tensor] | None = None
        self._curriculum = curriculum
        super().__init__(*args, **kwargs)
        if self.teacher_model is self.model:
            raise TrainingError(
                "the teacher is the student's own object; pass self_teacher(model, live=True or False) as teacher_model instead"
            )
        self.add_callback(LearningRateFactor(self, self))
        self.context = context
        self.distillation_weight = distillation_weight
        if objective is not None:
            self.objective = objective
        self._check()

    @property
    def objective(self) -> str:
        """Name of the objective; assigning another one takes effect with the next loss."""
        return objective_of(self.beta)

    @objective.setter
    def objective(self, name: str) -> None:
        self.beta = beta_of(name)

    @property
    def has_outcomes(self) -> bool:
        """Whether responses are verified."""
        return self._reward_func is not None

    @property
    def distillation_weight(self) -> float:
        """Factor λ of the learning rate of each optimizer step. Not of the loss, because Adam divides a loss's scale away again."""
        return self._distillation_weight

    @distillation_weight.setter
    def distillation_weight(self, weight: float) -> None:
        if not 0.0 <= weight < float("inf"):
            raise TrainingError(f"distillation_weight must be finite and at least 0, found {weight}")
        self._distillation_weight = float(weight)

    def _check(self) -> None:
        softcap = self.teacher_model is not None and getattr(self.teacher_model.config.get_text_config(), "final_logit_softcapping", None)
        if self.teacher_temperature <= 0 or (self.teacher_temperature != 1.0 and softcap):
            raise TrainingError(
                f"teacher_temperature must be positive, and 1 where the teacher caps its logits, found {self.teacher_temperature}"
            )
        check_curriculum(self._curriculum, self.train_dataset)
        check_prompts(self._teacher_prompts, self.train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep every column: the reward function and the contexts may want any of them."""
        super()._set_signature_columns_if_needed()
        columns = getattr(self.train_dataset, "column_names", None) or []
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *columns]))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with further rows, which are shuffled and split along: outcomes, questions, and the teacher's prompts."""
        batch = super()._generate_and_score_completions(inputs)
        device = batch["completion_ids"].device
        numbers = [question_number(row) for row in inputs]
        self.question_ids.update((number, question_key(row)) for number, row in zip(numbers, inputs, strict=True))
        batch["questions"] = torch.tensor(numbers, device=device)
        batch["outcomes"] = judge(self._reward_func, inputs, batch, self.processing_class.batch_decode)
        batch["truncated"] = cut_off(batch, self.eos_token_ids)
        tokenize, prompt = (lambda shown: self._tokenize_prompts(shown)[0]), self._teacher_prompts.get(self._context)
        batch.update(teacher_rows(inputs, prompt, tokenize, self._tokenizer.pad_token_id, device, self.pad_to_multiple_of))
        return batch

    def _compute_loss(self, unwrapped_student: Any, inputs: Mapping[str, torch.Tensor], num_items_in_batch: Any) -> Any:
        """TRL's loss computation, with its innermost function and the teacher's prompt exchanged for its duration."""
        self._request = inputs
        request = LossRequest(
            completion_ids=inputs["completion_ids"],
            outcomes=inputs["outcomes"],
            questions=inputs["questions"],
            has_context=inputs["has_context"],
            row_weights=weights_by_outcome(self._outcome_weights, inputs["outcomes"], inputs["truncated"]),
            token_weights=self._token_weights,
            observers=tuple(self.observers),
            teacher_temperature=self.teacher_temperature,
        )
        try:
            with _loss_function(partial(weighted_divergence_loss, request)):
                return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        finally:
            self._request = None

    def get_train_dataloader(self) -> Any:
        """TRL's, over the rows in the order of the curriculum if there is one."""
        with in_order(self, self._curriculum):
            return super().get_train_dataloader()

    def _get_last_hidden_state(
        self, unwrapped_model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **multimodal: Any
    ) -> torch.Tensor:
        """TRL's, with the teacher reading its own prompt before the same response tokens."""
        request = self._request
        is_teacher = self.teacher_model is not None and unwrapped_model is self.accelerator.unwrap_model(self.teacher_model)
        if request is not None and is_teacher and "teacher_prompt_ids" in request:
            input_ids = torch.cat([request["teacher_prompt_ids"], request["completion_ids"]], dim=1)
            attention_mask = torch.cat([request["teacher_prompt_mask"], request["completion_mask"]], dim=1)
        return super()._get_last_hidden_state(unwrapped_model, input_ids, attention_mask, logits_to_keep, **multimodal)


def self_teacher(model: Any, *, live: bool) -> Any:
    """The student as its own teacher: a module that can be shown a context or another temperature.

    Args:
        model: The student, a `transformers` model on one device.
        live: True shares the weights, so that the teacher is the student as it is now; False copies them as they are.

    Returns:
        The teacher, which needs no gradient of its own and has a training flag of its own.
    """
    import copy

    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]} if live else {}
    teacher = copy.deepcopy(model, shared)
    return teacher if live else teacher.requires_grad_(False)


@contextmanager
def _loss_function(function: Callable[..., Any]) -> Generator[None]:
    original = _trl._chunked_divergence_loss
    _trl._chunked_divergence_loss = function
    try:
        yield
    finally:
        _trl._chunked_divergence_loss = original
