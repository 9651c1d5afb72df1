"""Outcomes of the student's responses in a trainer's batch, and weights of whole responses by them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from opdscope.errors import TrainingError

RewardFunction = Callable[..., Sequence[float | None]]
"""As TRL has them: called with `prompts`, `completions` (texts), `completion_ids` and every column of the data set as a list.
1 is right, 0 wrong, None unknown."""


def judge(
    reward_func: RewardFunction | None,
    inputs: Sequence[Mapping[str, Any]],
    batch: Mapping[str, torch.Tensor],
    decode: Callable[..., list[str]],
) -> torch.Tensor:
    """Reward of each response of a batch, [row]; NaN where it is unknown, throughout without a reward function.

    Raises:
        TrainingError: If the function returns another number of rewards.
    """
    device = batch["completion_ids"].device
    if reward_func is None:
        return torch.full((len(inputs),), torch.nan, device=device)
    pairs = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
    token_ids = [ids[mask].tolist() for ids, mask in pairs]
    columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
    rewards = reward_func(
        prompts=[row["prompt"] for row in inputs],
        completions=decode(token_ids, skip_special_tokens=True),
        completion_ids=token_ids,
        **columns,
    )
    if len(rewards) != len(inputs):
        raise TrainingError(f"reward_func must return one reward per completion, {len(inputs)}, found {len(rewards)}")
    return torch.tensor([float("nan") if reward is None else float(reward) for reward in rewards], dtype=torch.float32, device=device)


def cut_off(batch: Mapping[str, torch.Tensor], eos_token_ids: Sequence[int]) -> torch.Tensor:
    """True where a response has no end-of-sequence token, [row]."""
    ends = torch.tensor(eos_token_ids, device=batch["completion_ids"].device)
    return ~(torch.isin(batch["completion_ids"], ends) & batch["completion_mask"].bool()).any(dim=1)


def check_outcome_weights(weights: Mapping[str, float], has_outcomes: bool) -> dict[str, float]:
    """A weight for every class; 1 if not given, and that of `incorrect` for `truncated`.

    Raises:
        TrainingError: If there is no such class, a weight is out of range, or nothing tells outcomes.
    """
    known = {"correct": 1.0, "incorrect": 1.0, "truncated": weights.get("incorrect", 1.0), "unverifiable": 1.0}
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise TrainingError(f"outcome_weights: unknown class {unknown[0]!r}; there are {', '.join(known)}")
    if any(not 0.0 <= weight < float("inf") for weight in weights.values()):
        raise TrainingError(f"outcome_weights must be finite and at least 0, found {dict(weights)}")
    if weights and not has_outcomes:
        raise TrainingError("outcome_weights need outcomes; pass a reward_func")
    return {**known, **weights}


def weights_by_outcome(weights: Mapping[str, float], outcomes: torch.Tensor, truncated: torch.Tensor) -> torch.Tensor:
    """Weight of each response, [row]: right from a reward of 0.5 on, unverifiable where it is NaN."""
    wrong = torch.where(truncated, weights["truncated"], weights["incorrect"])
    return torch.where(torch.isnan(outcomes), weights["unverifiable"], torch.where(outcomes >= 0.5, weights["correct"], wrong))
