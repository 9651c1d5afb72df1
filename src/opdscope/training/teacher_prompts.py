"""What the teacher reads before the student's tokens: a column of the data set, or a function of a row."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from trl.trainer.utils import pad

from opdscope.errors import TrainingError

PLAIN = "plain"
"""Name of the context in which the teacher is shown the student's own prompt."""

TeacherPrompt = str | Callable[[Mapping[str, Any]], Any]
"""Column that holds a teacher's whole prompt, or a function from a data set row to it; None where a row has none. Text or messages, like `prompt`."""


def check_prompts(prompts: Mapping[str, TeacherPrompt], dataset: Any) -> None:
    """Refuse a data set without the student's prompts, or without the column of a context.

    Raises:
        TrainingError: With the column, and those that there are.
    """
    columns = getattr(dataset, "column_names", None) or []
    if columns and "prompt" not in columns:
        raise TrainingError(f"the data set has no column 'prompt', which the student is asked; it has {', '.join(columns)}")
    for name, prompt in prompts.items():
        if isinstance(prompt, str) and columns and prompt not in columns:
            raise TrainingError(f"context {name!r} wants the column {prompt!r}, and the data set has {', '.join(columns)}")


def check_context(name: str, known: Sequence[str]) -> str:
    """A context's name, if there is such a context.

    Raises:
        TrainingError: If there is none.
    """
    if name not in known:
        raise TrainingError(f"there is no context {name!r}; those there are: {', '.join(known)}")
    return name


class SwitchableContext:
    """A trainer whose teacher may be shown another context mid-run; its class keeps the prompts of all of them."""

    _teacher_prompts: dict[str, TeacherPrompt]
    _context: str

    @property
    def context(self) -> str:
        """Name of the context that the teacher is shown; assigning another one takes effect with the next generated batch."""
        return self._context

    @context.setter
    def context(self, name: str) -> None:
        self._context = check_context(name, self.contexts)

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of all contexts."""
        return PLAIN, *self._teacher_prompts


def teacher_rows(
    inputs: Sequence[Mapping[str, Any]],
    prompt: TeacherPrompt | None,
    tokenize: Callable[[list[Any]], Sequence[Sequence[int]]],
    pad_token_id: int,
    device: torch.device,
    pad_to_multiple_of: int | None = None,
) -> dict[str, torch.Tensor]:
    """The teacher's prompts, padded on the left, and which rows have none; nothing more for the student's own prompt.

    Args:
        inputs: Rows of the data set.
        prompt: Of the present context; None for the student's own.
        tokenize: The trainer's, from prompts to token ids.
        pad_token_id: Fills up.
        device: Where the tensors go.
        pad_to_multiple_of: As the trainer pads.

    Returns:
        `has_context`, and `teacher_prompt_ids` and `teacher_prompt_mask` where the prompts are the teacher's own.
    """
    if prompt is None:
        return {"has_context": torch.ones(len(inputs), dtype=torch.bool, device=device)}
    found = [row[prompt] if isinstance(prompt, str) else prompt(row) for row in inputs]
    shown = [row["prompt"] if own is None else own for row, own in zip(inputs, found, strict=True)]
    tokens = [torch.tensor(ids) for ids in tokenize(shown)]
    padded = partial(pad, padding_side="left", pad_to_multiple_of=pad_to_multiple_of)
    return {
        "has_context": torch.tensor([own is not None for own in found], device=device),
        "teacher_prompt_ids": padded(tokens, padding_value=pad_token_id).to(device),
        "teacher_prompt_mask": padded([torch.ones_like(ids) for ids in tokens], padding_value=0).to(device),
    }
