"""A recipe applied to a trainer: objective, context, weights by outcome, question and token, the curriculum's order, and the weight's schedule."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opdscope.advice import LoadedRecipe, TokenBins, load_recipe
from opdscope.errors import TrainingError
from opdscope.models.vocabulary import tokenizer_hash
from opdscope.training.curriculum import question_number
from opdscope.training.loss import ScoredRows, TokenWeights
from opdscope.training.teacher_prompts import PLAIN

TEACHER_COLUMN = "teacher_{}"
"""Column of a data set that holds the teacher's prompt with a context, as :func:`opdscope.training.training_rows` names it."""


def open_recipe(path: str | Path, tokenizer: Any, args: Any) -> LoadedRecipe:
    """A recipe that fits the run, or a sentence.

    Args:
        path: The recipe's directory or its YAML file.
        tokenizer: Of the policy that is trained.
        args: The trainer's arguments; sampling has to be what the recipe was measured with.

    Raises:
        RecipeError: If it is missing, damaged, or made for another tokenizer.
        TrainingError: If it advises against distillation, or was measured under other sampling.
    """
    loaded = load_recipe(path, tokenizer_hash(tokenizer.get_vocab(), tokenizer.all_special_ids))
    recipe = loaded.recipe
    if recipe.kind != "distil":
        raise TrainingError(f"{loaded.path}: the recipe says {recipe.kind!r}, there is nothing to apply. {recipe.text}")
    if args.temperature != recipe.temperature:
        raise TrainingError(
            f"{loaded.path}: measured at temperature {recipe.temperature:g}, and the trainer samples at {args.temperature:g}; set them equal, "
            "because gain and weights are those of the policy at that temperature"
        )
    return loaded


def recipe_settings(loaded: LoadedRecipe, dataset: Any) -> dict[str, Any]:
    """Keyword arguments of :class:`~opdscope.training.distillation.MonitoredDistillationTrainer` that apply a recipe.

    Args:
        loaded: From :func:`open_recipe`.
        dataset: The training data; needs `question_id` where the recipe has weights or an order of questions, and the teacher's context.

    Raises:
        TrainingError: If a column is missing, or questions are not those of the recipe.
    """
    recipe = loaded.recipe
    columns = set(getattr(dataset, "column_names", None) or [])
    settings: dict[str, Any] = {"objective": recipe.objective, "token_weights": None}
    assert recipe.teacher is not None  # of a recipe that says "distil"
    kind = recipe.teacher.privileged_context
    wanted = {name: TEACHER_COLUMN.format(name) for name in (kind, *next_contexts(loaded)) if name != PLAIN}
    if kind != PLAIN and wanted[kind] not in columns:
        raise TrainingError(f"the recipe's teacher is shown {kind!r}, and the data set has no column {wanted[kind]!r} with its prompt")
    settings["teacher_prompts"] = {name: column for name, column in wanted.items() if column in columns}
    settings["context"] = kind
    if recipe.outcome_weighting.use:
        settings["outcome_weights"] = recipe.outcome_weights.model_dump()
    weights = loaded.question_weights if recipe.question_weighting.use else {}
    if weights or loaded.batches:
        _check_questions(loaded, dataset, columns)
    if weights or loaded.token_bins is not None:
        settings["token_weights"] = recipe_weights(loaded.token_bins, weights)
    if loaded.batches:
        settings["curriculum"] = loaded.batches
    return settings


def next_contexts(loaded: LoadedRecipe) -> tuple[str, ...]:
    """Contexts that a rule may switch to, best first: those of the recipe's alternatives with the same teacher model.

    Args:
        loaded: From :func:`open_recipe`.
    """
    recipe = loaded.recipe
    assert recipe.teacher is not None  # of a recipe that says "distil"
    others = [other.privileged_context for other in recipe.alternatives if _same_model(other, recipe.teacher)]
    return tuple(name for name in dict.fromkeys(others) if name != recipe.teacher.privileged_context)


def recipe_weights(bins: TokenBins | None, question_weights: Mapping[str, float]) -> TokenWeights:
    """Weight of every token: that of its bin times that of its question; questions that are not listed count 1.

    Args:
        bins: By depth, entropy or divergence; None for none.
        question_weights: By `question_id`.
    """
    by_number = {question_number({"question_id": key}): weight for key, weight in question_weights.items()}

    def weights(rows: ScoredRows) -> torch.Tensor:
        per_row = torch.tensor([by_number.get(number, 1.0) for number in rows.questions.tolist()], device=rows.signal.device)
        own = per_row.to(rows.signal)[rows.row]
        if bins is None:
            return own
        feature = {"depth": rows.position.to(rows.signal), "entropy": rows.entropy, "divergence": rows.divergence}[bins.feature]
        edges = torch.tensor(bins.edges, dtype=feature.dtype, device=feature.device)
        table = torch.tensor(bins.weights, dtype=own.dtype, device=own.device)
        return own * table[torch.bucketize(feature, edges, right=True)]

    return weights


def _same_model(first: Any, second: Any) -> bool:
    return first.model_name_or_path == second.model_name_or_path


def _check_questions(loaded: LoadedRecipe, dataset: Any, columns: set[str]) -> None:
    if "question_id" not in columns:
        raise TrainingError("the recipe has weights or an order of questions, and the data set has no column 'question_id' to find them by")
    known = set(loaded.questions["question_id"].to_pylist())
    if not known & set(dataset["question_id"]):
        raise TrainingError(
            "the recipe has weights or an order of questions, and none of them is in the data set; train on the questions of the diagnosis, "
            f"whose ids are like {next(iter(known))!r}"
        )
