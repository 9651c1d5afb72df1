"""Recipes on disk: written whole, read with every failure as a sentence, and refused for another tokenizer."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jaxtyping import Float
from pydantic import ValidationError

from opdscope.advice.recipe import QUESTIONS_FILE, RECIPE_FILE, RECIPE_VERSION, TOKEN_WEIGHTS_FILE, Recipe
from opdscope.errors import RecipeError

TABLES: Mapping[str, pa.Schema] = {
    # One row per question of the diagnosis, in the order of the curriculum: from little guidance to much, then those that are held back.
    QUESTIONS_FILE: pa.schema(
        {
            "question_id": pa.string(),
            "question": pa.string(),  # its text, to match a trainer's data set by
            "place": pa.int32(),  # from 0
            "batch": pa.int32(),  # of the curriculum, from 0; -1 for questions that are held back
            "held_back": pa.bool_(),  # more likely than not the teacher's push lowers success here
            "weight": pa.float64(),  # of the distillation loss on its responses
            "success": pa.float64(),  # the student's
            "gain": pa.float64(),  # shrunken natural gain, per unit step and response
            "gain_sd": pa.float64(),  # its posterior standard deviation
        }
    ),
    # One row per bin of each feature that was tried; those of `token_weighting.feature` are used.
    TOKEN_WEIGHTS_FILE: pa.schema(
        {
            "feature": pa.string(),
            "low": pa.float64(),  # inclusive; -inf in the first bin
            "high": pa.float64(),  # exclusive; inf in the last
            "weight": pa.float64(),  # on the loss of a token in the bin
            "share_of_tokens": pa.float64(),
            "share_of_push": pa.float64(),  # of the divergence
            "gain": pa.float64(),  # natural gain of the bin, summed over a response
            "gain_low": pa.float64(),
            "gain_high": pa.float64(),
        }
    ),
}
"""Columns of the two tables. Undefined numbers are NaN."""


@dataclass(frozen=True)
class TokenBins:
    """Weights of tokens by one feature."""

    feature: str
    """depth, entropy or divergence; see :data:`opdscope.advice.recipe.TokenFeature`."""
    edges: Float[np.ndarray, "edge"]
    """Inner edges, rising; bin k holds edges[k - 1] <= value < edges[k]."""
    weights: Float[np.ndarray, "bin"]
    """One more than edges."""

    def weight(self, values: Float[np.ndarray, "*token"]) -> Float[np.ndarray, "*token"]:
        """Weight of tokens with these values of the feature; 1 where a value is NaN.

        The same as `torch.bucketize(values, edges, right=True)` used as an index into the weights.

        Example:
            >>> TokenBins("depth", np.array([10.0]), np.array([0.5, 2.0])).weight(np.array([9.0, 10.0, np.nan])).tolist()
            [0.5, 2.0, 1.0]
        """
        return np.where(np.isnan(values), 1.0, self.weights[np.searchsorted(self.edges, values, side="right")])


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its tables."""

    path: Path
    """Its directory."""
    recipe: Recipe
    """The decisions."""
    questions: pa.Table
    """Weights and curriculum, as :data:`TABLES` describes them."""
    token_weights: pa.Table
    """Every bin that was tried."""

    @cached_property
    def token_bins(self) -> TokenBins | None:
        """The weights of tokens to use; None if none are shown to help."""
        feature = self.recipe.token_weighting.feature
        rows = [row for row in self.token_weights.to_pylist() if row["feature"] == feature]
        if not self.recipe.token_weighting.use or feature is None:
            return None
        return TokenBins(feature, np.array([row["low"] for row in rows[1:]]), np.array([row["weight"] for row in rows]))

    @cached_property
    def question_weights(self) -> dict[str, float]:
        """Weight of each question by id; 1 throughout unless the weights are shown to help."""
        return dict(zip(self.questions["question_id"].to_pylist(), self.questions["weight"].to_pylist(), strict=True))

    @cached_property
    def batches(self) -> list[list[str]]:
        """Question ids of each batch of the curriculum, in order; those held back are in none."""
        found: dict[int, list[str]] = {}
        for row in self.questions.to_pylist():
            if row["batch"] >= 0:
                found.setdefault(row["batch"], []).append(row["question_id"])
        return [found[batch] for batch in sorted(found)]

    def check_tokenizer(self, tokenizer_hash: str) -> None:
        """Refuse a tokenizer that the recipe was not made with.

        Args:
            tokenizer_hash: That of the policy to be trained, from :func:`opdscope.models.vocabulary.tokenizer_hash`.

        Raises:
            RecipeError: If it differs.
        """
        own = self.recipe.student.tokenizer_hash
        if own is not None and own != tokenizer_hash:
            raise RecipeError(
                f"{self.path}: this recipe was made with the tokenizer of {self.recipe.student.model_name_or_path} ({own[:12]}…), but the model to "
                f"be trained has another one ({tokenizer_hash[:12]}…); its weights are about other tokens: run `opdscope diagnose` with this "
                "model as the student, and `opdscope advise` on that run"
            )


def write_recipe(directory: Path, recipe: Recipe, tables: Mapping[str, pa.Table]) -> Path:
    """Write a recipe; the YAML file comes last, so that a recipe which can be read is complete.

    Args:
        directory: Where; made if it does not exist. A recipe that is there is replaced.
        recipe: The decisions; its `files` are filled in.
        tables: The tables by file name.

    Returns:
        The YAML file.

    Raises:
        RecipeError: If it cannot be written.
    """
    target = directory / RECIPE_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        for name, table in tables.items():
            pq.write_table(table.cast(TABLES[name]), directory / name, compression="zstd")
        files = {name: _digest(directory / name) for name in tables}
        content = recipe.model_copy(update={"files": files}).model_dump(mode="json")
        target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot write the recipe to {directory} ({error.strerror or error}); choose another place with --output"
        ) from error
    return target


def load_recipe(path: str | Path, tokenizer_hash: str | None = None) -> LoadedRecipe:
    """Read a recipe and its tables.

    Args:
        path: Its directory, or the `recipe.yaml` in it.
        tokenizer_hash: That of the policy to be trained; None leaves the check to :meth:`LoadedRecipe.check_tokenizer`.

    Raises:
        RecipeError: If it is missing, damaged, of another version, changed by hand in its tables, or made for another tokenizer.
    """
    given = Path(path)
    directory = given.parent if given.name == RECIPE_FILE else given
    data = _read_yaml(directory / RECIPE_FILE)
    if data.get("version") != RECIPE_VERSION:
        raise RecipeError(
            f"{directory / RECIPE_FILE} has version {data.get('version')!r}, this opdscope reads version {RECIPE_VERSION}; "
            "write it again with `opdscope advise`"
        )
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{directory / RECIPE_FILE}: {_problems(error.errors())}; write it again with `opdscope advise`") from error
    tables = {name: _read_table(directory / name, recipe.files.get(name)) for name in TABLES}
    loaded = LoadedRecipe(directory, recipe, tables[QUESTIONS_FILE], tables[TOKEN_WEIGHTS_FILE])
    if tokenizer_hash is not None:
        loaded.check_tokenizer(tokenizer_hash)
    return loaded


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe {path}; `opdscope advise RUN` writes one") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a recipe, found {type(data).__name__}; `opdscope advise RUN` writes one")
    return data


def _read_table(path: Path, digest: str | None) -> pa.Table:
    if not path.is_file():
        raise RecipeError(f"{path} is missing; the three files of a recipe belong together: write it again with `opdscope advise`")
    if digest != _digest(path):
        raise RecipeError(f"{path} is not the file that the recipe was written with; write both again with `opdscope advise`")
    try:
        return pq.ParquetFile(path).read().cast(TABLES[path.name])
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}; write the recipe again with `opdscope advise`") from error


def _problems(errors: Sequence[Any]) -> str:
    return "; ".join(": ".join(filter(None, [".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")])) for e in errors)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
