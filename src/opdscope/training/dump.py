"""Rollouts that another trainer has written down, rescored: the live monitor's series without the live run.

Texts are encoded again and their end-of-sequence token is lost, which a running trainer would not do; and student and teacher are those of the
configuration, not those of each step. So a series from a dump says how the recorded rollouts look to *these* two models.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opdscope.errors import TrainingError

_VERL = frozenset({"input", "output", "score"})
_TRL = frozenset({"step", "prompt", "completion"})
_NOT_REWARDS = frozenset({"step", "prompt", "completion", "advantage", "solution", "answer", "question_id"})


@dataclass(frozen=True)
class DumpedRollout:
    """One response of a dump."""

    step: int
    """Optimizer step."""
    prompt: str
    """What the student was shown, as text; of messages the last user turn."""
    response: str
    """What it said."""
    reward: float | None
    """What it got; None where the dump has no reward."""


def read_dump(path: str | Path, reward: str | None = None) -> dict[int, list[DumpedRollout]]:
    """Rollouts by step, in the order of steps.

    Args:
        path: verl's `rollout_data_dir` or one of its JSONL files (input, output, gts, score, step), or the folder of completions of a TRL trainer
            with `log_completions=True`, or one of its Parquet files (step, prompt, completion, rewards).
        reward: Column to take the reward from, where a TRL dump has several.

    Raises:
        TrainingError: If there is nothing, or its layout is another one.
    """
    given = Path(path)
    files = [given] if given.is_file() else sorted([*given.rglob("*.jsonl"), *given.rglob("*.parquet")])
    if not files:
        raise TrainingError(f"{path}: expected a JSONL or Parquet file of rollouts, or a folder of them, and found none")
    found: dict[int, list[DumpedRollout]] = {}
    for file in files:
        for rollout in _read_jsonl(file) if file.suffix == ".jsonl" else _read_parquet(file, reward):
            found.setdefault(rollout.step, []).append(rollout)
    if not found:
        raise TrainingError(f"{path}: the files hold no rollouts")
    return {step: found[step] for step in sorted(found)}


def _read_jsonl(path: Path) -> Iterator[DumpedRollout]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 ({error}); is it a dump of rollouts?") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainingError(f"{place}: not JSON ({error}); is the file whole?") from error
        missing = _VERL - set(row) if isinstance(row, dict) else _VERL
        if missing:
            keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
            raise TrainingError(f"{place}: unknown layout: expected verl's keys input, output, gts, score and step, found {keys}")
        step = str(row.get("step", path.stem)).removesuffix(".0")
        if not step.isdigit():
            raise TrainingError(f"{place}: no step: expected a key `step`, or a file named by it, as 10.jsonl")
        yield DumpedRollout(int(step), _text(row["input"]), _text(row["output"]), _reward(place, row["score"]))


def _reward(place: str, value: Any) -> float | None:
    if value is None or isinstance(value, bool | int | float):
        return None if value is None else float(value)
    raise TrainingError(f"{place}: expected a number or nothing as the reward, found {str(value)[:40]!r}")


def _read_parquet(path: Path, wanted: str | None) -> Iterator[DumpedRollout]:
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise TrainingError(f"{path} cannot be read as Parquet: {error}") from error
    columns = set(table.column_names)
    if not columns >= _TRL:
        raise TrainingError(
            f"{path}: unknown layout: expected TRL's columns step, prompt and completion, found {', '.join(table.column_names)}"
        )
    column = _reward_column(path, table, wanted)
    if not pa.types.is_integer(table.schema.field("step").type):
        raise TrainingError(f"{path}: unknown layout: expected whole numbers in the column step, found {table.schema.field('step').type}")
    for row in table.to_pylist():
        reward = None if column is None else _reward(str(path), row[column])
        yield DumpedRollout(int(row["step"]), _text(row["prompt"]), _text(row["completion"]), reward)


def _reward_column(path: Path, table: pa.Table, reward: str | None) -> str | None:
    numeric = [field.name for field in table.schema if field.name not in _NOT_REWARDS and not pa.types.is_nested(field.type)
               and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))]  # fmt: skip
    if reward is not None:
        if reward not in numeric:
            raise TrainingError(f"{path}: there is no reward column {reward!r}; those there are: {', '.join(numeric) or 'none'}")
        return reward
    if len(numeric) > 1:
        raise TrainingError(f"{path}: several columns may be the reward ({', '.join(numeric)}); name one with --reward")
    return numeric[0] if numeric else None


def _text(value: Any) -> str:
    """Text, or of messages the content of the last one; nothing as no text."""
    return value if isinstance(value, str) else str(value[-1]["content"]) if value else ""


def match_questions(rollouts: Sequence[DumpedRollout], questions: Sequence[str]) -> list[int | None]:
    """Which question each rollout answers: the longest one whose text occurs in its prompt; None if there is none.

    Example:
        >>> match_questions([DumpedRollout(1, "user: 1+12?", "13", 1.0)], ["1+1", "1+12"])
        [1]
    """
    order = sorted(range(len(questions)), key=lambda index: -len(questions[index]))
    cache: dict[str, int | None] = {}
    for rollout in rollouts:
        if rollout.prompt not in cache:
            cache[rollout.prompt] = next((index for index in order if questions[index] in rollout.prompt), None)
    return [cache[rollout.prompt] for rollout in rollouts]
