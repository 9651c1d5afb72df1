"""GRPO with a distillation loss beside it: TRL's `GRPOTrainer` with a teacher, weights, contexts, and a mix that the live monitor can follow.

The student's forward pass is GRPO's own: its hidden states are read on their way to the head. The teacher costs one forward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl.trainer import grpo_trainer

from opdscope.errors import TrainingError
from opdscope.training.curriculum import check_curriculum, in_order, question_key, question_number
from opdscope.training.loss import LossRequest, Observer, TokenWeights, beta_of, check_kernel, objective_of, weighted_divergence_loss
from opdscope.training.outcomes import check_outcome_weights, cut_off, weights_by_outcome
from opdscope.training.teacher_prompts import PLAIN, SwitchableContext, TeacherPrompt, check_prompts, teacher_rows

_GRPOTrainer: Any = grpo_trainer.GRPOTrainer

LOSS_TYPES = ("dapo", "bnpo", "grpo", "dr_grpo")
"""TRL's `loss_type` whose expected gradient is known (:mod:`opdscope.core.mixing`)."""
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Settings of models that multiply their logits."""


class MonitoredGRPOTrainer(SwitchableContext, _GRPOTrainer):
    """(1 - w) GRPO + w distillation, watched."""

    def __init__(
        self,
        *args: Any,
        teacher_model: Any,
        distillation_weight: float = 0.5,
        objective: str = "reverse_kl",
        teacher_prompts: Mapping[str, TeacherPrompt] | None = None,
        context: str = PLAIN,
        outcome_weights: Mapping[str, float] | None = None,
        token_weights: TokenWeights | None = None,
        curriculum: Sequence[Sequence[str]] = (),
        outcome_reward: int = 0,
        observers: Sequence[Observer] = (),
        **kwargs: Any,
    ) -> None:
        """Wrap TRL's trainer; arguments that are not named here are its own.

        Args:
            *args: Positional arguments of TRL's trainer.
            teacher_model: A `transformers` model with the student's vocabulary; not trained.
            distillation_weight: Share w of distillation in the loss, in [0, 1]; 0 trains with GRPO and only watches the teacher.
            objective: Of :mod:`opdscope.core.divergences`.
            teacher_prompts: Contexts by name. A row without a prompt in the current context gets weight 0. `plain` always exists.
            context: Which of them the teacher is shown.
            outcome_weights: Weight in the distillation loss of the tokens of `correct` (a reward of 0.5 or more), `incorrect`, `truncated` and
                `unverifiable` responses; 1 if not given.
            token_weights: From the tokens of a batch to their weights in the distillation loss.
            curriculum: Batches of question ids, in the order in which they are trained on; the data set needs `question_id`.
            outcome_reward: Which of the reward functions says whether a response is right, 1 or 0.
            observers: Are shown every batch's tokens, such as the live monitor.
            **kwargs: Keyword arguments of TRL's trainer.

        Raises:
            TrainingError: If a setting is wrong, before anything is trained.
        """
        check_kernel()
        self._teacher_prompts: dict[str, TeacherPrompt] = dict(teacher_prompts or {})
        self._outcome_weights, self._token_weights = check_outcome_weights(outcome_weights or {}, has_outcomes=True), token_weights
        self.observers = list(observers)
        """Who is shown every batch; may be changed mid-run."""
        self.question_ids: dict[int, str] = {}
        """Id of each question seen so far, by its number."""
        self._curriculum, self._outcome_reward = curriculum, outcome_reward
        self._local_rewards: torch.Tensor | None = None
        self._hidden: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)
        self.context, self.objective, self.distillation_weight = context, objective, distillation_weight
        self._check(teacher_model)
        self.teacher_model = self.accelerator.prepare_model(teacher_model, evaluation_mode=True)

    @property
    def objective(self) -> str:
        """Name of the objective; assigning another one takes effect with the next loss."""
        return objective_of(self._distillation_beta)

    @objective.setter
    def objective(self, name: str) -> None:
        self._distillation_beta = beta_of(name)

    @property
    def has_outcomes(self) -> bool:
        """Always, by the rewards."""
        return True

    @property
    def distillation_weight(self) -> float:
        """Share w of distillation in the loss; assigning another one takes effect with the next loss."""
        return self._distillation_weight

    @distillation_weight.setter
    def distillation_weight(self, weight: float) -> None:
        if not 0.0 <= weight <= 1.0:
            raise TrainingError(f"distillation_weight is a share of the loss, from 0 to 1, found {weight}")
        self._distillation_weight = float(weight)

    def _check(self, teacher: Any) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise TrainingError(f"loss_type {self.loss_type!r}: the mix with distillation is known for {', '.join(LOSS_TYPES)}")
        if not 0 <= self._outcome_reward < len(self.reward_funcs):
            raise TrainingError(
                f"outcome_reward: there are {len(self.reward_funcs)} reward functions, counted from 0, found {self._outcome_reward}"
            )
        if teacher is self.model:
            raise TrainingError(
                "the teacher is the student's own object; pass self_teacher(model, live=True or False) as teacher_model instead"
            )
        student, other = (self.accelerator.unwrap_model(model).config.get_text_config() for model in (self.model, teacher))
        if student.vocab_size != other.vocab_size:
            raise TrainingError(
                f"student and teacher have vocabularies of {student.vocab_size} and {other.vocab_size} tokens; use a teacher of the same"
            )
        for config in (student, other):
            scaled = [name for name in _SCALES if getattr(config, name, None) not in (None, 1.0)]
            if scaled:
                raise TrainingError(
                    f"a {config.model_type} model multiplies its logits ({scaled[0]}), which MonitoredGRPOTrainer does not know"
                )
        check_curriculum(self._curriculum, self.train_dataset)
        check_prompts(self._teacher_prompts, self.train_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep every column: the contexts may want any of them."""
        super()._set_signature_columns_if_needed()
        columns = getattr(self.train_dataset, "column_names", None) or []
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *columns]))

    def get_train_dataloader(self) -> Any:
        """TRL's, over the rows in the order of the curriculum if there is one."""
        with in_order(self, self._curriculum):
            return super().get_train_dataloader()

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """TRL's rewards of all processes; those of this one tell its outcomes."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        start = self.accelerator.process_index * len(prompts)
        self._local_rewards = rewards[start : start + len(prompts), self._outcome_reward].float()
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with further rows, which are shuffled and split along: outcomes, questions, and the teacher's prompts."""
        batch = super()._generate_and_score_completions(inputs)
        device = batch["completion_ids"].device
        numbers = [question_number(row) for row in inputs]
        self.question_ids.update((number, question_key(row)) for number, row in zip(numbers, inputs, strict=True))
        batch["questions"], batch["outcomes"] = torch.tensor(numbers, device=device), self._local_rewards
        batch["truncated"] = cut_off(batch, self.eos_token_ids)
        tokenize, prompt = (lambda shown: self._tokenize_prompts(shown)[0]), self._teacher_prompts.get(self._context)
        batch.update(teacher_rows(inputs, prompt, tokenize, self._tokenizer.pad_token_id, device, self.pad_to_multiple_of))
        return batch

    def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mix, while training; GRPO's own loss while evaluating."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        backbone = _backbone(self.accelerator.unwrap_model(model))
        handle = backbone.register_forward_hook(lambda _, __, output: self._hidden.append(output.last_hidden_state))
        try:
            policy = super()._compute_loss(model, inputs)
            student = self._hidden[-1]
        finally:
            handle.remove()
            self._hidden.clear()
        weight = self._distillation_weight
        distillation = self._distillation_loss(self.accelerator.unwrap_model(model), student, inputs)
        self._metrics["train"]["distillation_loss"].append(float(self.accelerator.gather(distillation.detach()).mean()))
        return policy if weight == 0.0 else (1.0 - weight) * policy + weight * distillation

    def _distillation_loss(self, student: Any, hidden: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        self.teacher_model.eval()
        heads = [own.get_output_embeddings() for own in (student, teacher)]
        softcaps = [getattr(own.config.get_text_config(), "final_logit_softcapping", None) for own in (student, teacher)]
        length = inputs["completion_ids"].size(1)
        mask = inputs["completion_mask"] if "tool_mask" not in inputs else inputs["completion_mask"] * inputs["tool_mask"]
        request = LossRequest(
            completion_ids=inputs["completion_ids"], outcomes=inputs["outcomes"], questions=inputs["questions"],
            has_context=inputs["has_context"],
            row_weights=weights_by_outcome(self._outcome_weights, inputs["outcomes"], inputs["truncated"]),
            token_weights=self._token_weights, observers=tuple(self.observers), teacher_temperature=1.0,
        )  # fmt: skip
        return weighted_divergence_loss(
            request, hidden[:, :-1][:, -length:], self._teacher_states(teacher, inputs, length), heads[0].weight, heads[1].weight, mask,
            self._distillation_beta, num_items_in_batch=self._divisor(inputs, mask), temperature=self.temperature,
            student_lm_head_bias=heads[0].bias, teacher_lm_head_bias=heads[1].bias,
            student_final_logit_softcapping=softcaps[0], teacher_final_logit_softcapping=softcaps[1],
        )[0]  # fmt: skip

    @torch.no_grad()
    def _teacher_states(self, teacher: Any, inputs: Mapping[str, torch.Tensor], length: int) -> torch.Tensor:
        """The teacher's hidden states before each response token, after its own prompt if it has one."""
        own = "teacher_prompt" if "teacher_prompt_ids" in inputs else "prompt"
        token_ids = torch.cat([inputs[f"{own}_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs[f"{own}_mask"], inputs["completion_mask"]], dim=1)
        states = teacher.base_model(input_ids=token_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return states[:, :-1][:, -length:]

    def _divisor(self, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """What the sum over tokens is divided by: as TRL does it for its `loss_type`, so that w means the same for all of them."""
        accumulation = self.current_gradient_accumulation_steps
        if self.loss_type == "dapo":
            whole = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            return whole * accumulation / self.args.steps_per_generation
        if self.loss_type == "dr_grpo":
            return torch.tensor(float(mask.size(0) * self.max_completion_length * accumulation), device=mask.device)
        return mask.sum().clamp(min=1.0) * accumulation


def _backbone(model: Any) -> Any:
    """The module whose last hidden state goes to the head; within an adapter that of the model that it adapts."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.base_model
