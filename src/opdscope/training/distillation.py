"""TRL's `DistillationTrainer` with token weights, outcome filters, teacher contexts, and an objective and context that can change mid-run.

Everything else is TRL's: generation, accumulation, chunked loss, logging. Two of its private functions are built upon, and
:func:`opdscope.training.loss.check_kernel` refuses a version in which they mean something else.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from trl.trainer import distillation_trainer
from trl.trainer.utils import pad

from opdscope.errors import TrainingError
from opdscope.training.curriculum import curriculum_order, question_key, question_number
from opdscope.training.learning_rate import LearningRateFactor
from opdscope.training.loss import LossRequest, Observer, TokenWeights, beta_of, check_kernel, objective_of, weighted_divergence_loss

_trl: Any = distillation_trainer
_DistillationTrainer: Any = _trl.DistillationTrainer

PLAIN = "plain"
"""Name of the context in which the teacher is shown the student's own prompt."""

TeacherPrompt = str | Callable[[Mapping[str, Any]], Any]
"""Column that holds a teacher's whole prompt, or a function from a data set row to it; None where a row has none. Text or messages, like `prompt`."""

RewardFunction = Callable[..., Sequence[float | None]]
"""As TRL has them: called with `prompts`, `completions` (texts), `completion_ids` and every column of the data set as a list.
1 is right, 0 wrong, None unknown."""


class MonitoredDistillationTrainer(_DistillationTrainer):
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
        self._outcome_weights = _checked_outcomes(outcome_weights or {}, reward_func is not None)
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
    def context(self) -> str:
        """Name of the context that the teacher is shown; assigning another one takes effect with the next generated batch."""
        return self._context

    @context.setter
    def context(self, name: str) -> None:
        if name != PLAIN and name not in self._teacher_prompts:
            raise TrainingError(f"there is no context {name!r}; those there are: {', '.join([PLAIN, *self._teacher_prompts])}")
        self._context = name

    @property
    def has_outcomes(self) -> bool:
        """Whether responses are verified."""
        return self._reward_func is not None

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of all contexts."""
        return PLAIN, *self._teacher_prompts

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
        columns = getattr(self.train_dataset, "column_names", None) or []
        if self._curriculum and "question_id" not in columns:
            raise TrainingError("a curriculum needs a data set of known length with the column 'question_id'")
        for name, prompt in self._teacher_prompts.items():
            if isinstance(prompt, str) and columns and prompt not in columns:
                raise TrainingError(f"context {name!r} wants the column {prompt!r}, and the data set has {', '.join(columns)}")

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
        batch["outcomes"] = torch.tensor(self._outcomes(inputs, batch), dtype=torch.float32, device=device)
        ends = torch.tensor(self.eos_token_ids, device=device)
        batch["truncated"] = ~(torch.isin(batch["completion_ids"], ends) & batch["completion_mask"].bool()).any(dim=1)
        batch.update(self._teacher_rows(inputs, device))
        return batch

    def _outcomes(self, inputs: Sequence[Mapping[str, Any]], batch: Mapping[str, torch.Tensor]) -> list[float]:
        if self._reward_func is None:
            return [float("nan")] * len(inputs)
        pairs = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
        token_ids = [ids[mask].tolist() for ids, mask in pairs]
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
        rewards = self._reward_func(
            prompts=[row["prompt"] for row in inputs],
            completions=self.processing_class.batch_decode(token_ids, skip_special_tokens=True),
            completion_ids=token_ids,
            **columns,
        )
        if len(rewards) != len(inputs):
            raise TrainingError(f"reward_func must return one reward per completion, {len(inputs)}, found {len(rewards)}")
        return [float("nan") if reward is None else float(reward) for reward in rewards]

    def _teacher_rows(self, inputs: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, torch.Tensor]:
        """The teacher's prompts, padded on the left, and which rows have none; nothing more while the context is plain."""
        if self._context == PLAIN:
            return {"has_context": torch.ones(len(inputs), dtype=torch.bool, device=device)}
        own = self._teacher_prompts[self._context]
        found = [row[own] if isinstance(own, str) else own(row) for row in inputs]
        shown = [row["prompt"] if prompt is None else prompt for row, prompt in zip(inputs, found, strict=True)]
        tokens = [torch.tensor(ids) for ids in self._tokenize_prompts(shown)[0]]
        padded = partial(pad, padding_side="left", pad_to_multiple_of=self.pad_to_multiple_of)
        return {
            "has_context": torch.tensor([prompt is not None for prompt in found], device=device),
            "teacher_prompt_ids": padded(tokens, padding_value=self._tokenizer.pad_token_id).to(device),
            "teacher_prompt_mask": padded([torch.ones_like(ids) for ids in tokens], padding_value=0).to(device),
        }

    def _compute_loss(self, unwrapped_student: Any, inputs: Mapping[str, torch.Tensor], num_items_in_batch: Any) -> Any:
        """TRL's loss computation, with its innermost function and the teacher's prompt exchanged for its duration."""
        self._request = inputs
        request = LossRequest(
            completion_ids=inputs["completion_ids"],
            outcomes=inputs["outcomes"],
            questions=inputs["questions"],
            has_context=inputs["has_context"],
            row_weights=self._weights_by_outcome(inputs["outcomes"], inputs["truncated"]),
            token_weights=self._token_weights,
            observers=tuple(self.observers),
            teacher_temperature=self.teacher_temperature,
        )
        try:
            with _loss_function(partial(weighted_divergence_loss, request)):
                return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        finally:
            self._request = None

    def _weights_by_outcome(self, outcomes: torch.Tensor, truncated: torch.Tensor) -> torch.Tensor:
        own = self._outcome_weights
        wrong = torch.where(truncated, own["truncated"], own["incorrect"])
        return torch.where(torch.isnan(outcomes), own["unverifiable"], torch.where(outcomes >= 0.5, own["correct"], wrong))

    def get_train_dataloader(self) -> Any:
        """TRL's, over the rows in the order of the curriculum if there is one."""
        if not self._curriculum:
            return super().get_train_dataloader()
        args, whole = self.args, self.train_dataset
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(whole) / self._rows_per_step())
        order = curriculum_order(whole["question_id"], self._curriculum, steps * self._rows_per_step(), args.seed)
        self.train_dataset, self.shuffle_dataset = whole.select(order), False
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = whole

    def _rows_per_step(self) -> int:
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

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


def _checked_outcomes(weights: Mapping[str, float], has_outcomes: bool) -> dict[str, float]:
    known = {"correct": 1.0, "incorrect": 1.0, "truncated": weights.get("incorrect", 1.0), "unverifiable": 1.0}
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise TrainingError(f"outcome_weights: unknown class {unknown[0]!r}; there are {', '.join(known)}")
    if any(not 0.0 <= weight < float("inf") for weight in weights.values()):
        raise TrainingError(f"outcome_weights must be finite and at least 0, found {dict(weights)}")
    if weights and not has_outcomes:
        raise TrainingError("outcome_weights need outcomes; pass a reward_func")
    return {**known, **weights}


@contextmanager
def _loss_function(function: Callable[..., Any]) -> Generator[None]:
    original = _trl._chunked_divergence_loss
    _trl._chunked_divergence_loss = function
    try:
        yield
    finally:
        _trl._chunked_divergence_loss = original
