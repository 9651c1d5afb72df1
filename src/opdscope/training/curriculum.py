"""Which question a row asks, and the order in which a curriculum asks them."""

import hashlib
import json
import math
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opdscope.errors import TrainingError


def question_key(row: Mapping[str, Any]) -> str:
    """Id of a data set row's question: its `question_id`, or else its prompt as text."""
    given = row.get("question_id")
    return str(given) if given is not None else json.dumps(row["prompt"], sort_keys=True, default=str)


def question_number(row: Mapping[str, Any]) -> int:
    """A stable 63-bit number of a row's question, the same in every process and every run."""
    return int.from_bytes(hashlib.blake2b(question_key(row).encode(), digest_size=8).digest()) >> 1


def curriculum_order(question_ids: Sequence[str], batches: Sequence[Sequence[str]], num_rows: int, seed: int) -> list[int]:
    """Rows of a data set in the order of a curriculum: every batch gets an equal share of the run, and is gone through as often as that takes.

    Args:
        question_ids: Of the data set's rows.
        batches: Question ids, first batch first; questions in none of them are left out.
        num_rows: Rows that the run will read.
        seed: Of the order within a batch.

    Raises:
        TrainingError: If a batch has no row in the data set.
    """
    generator = random.Random(seed)
    place: dict[str, list[int]] = {}
    for index, key in enumerate(question_ids):
        place.setdefault(key, []).append(index)
    order: list[int] = []
    for number, batch in enumerate(batches, start=1):
        rows = [index for key in batch for index in place.get(key, [])]
        if not rows:
            raise TrainingError(
                f"batch {number} of the curriculum has no question in the data set; train on the questions of the diagnosis"
            )
        wanted = num_rows * number // len(batches) - len(order)
        while wanted > 0:
            generator.shuffle(rows)
            order += rows[:wanted]
            wanted -= len(rows[:wanted])
    return order


def check_curriculum(batches: Sequence[Sequence[str]], dataset: Any) -> None:
    """Refuse a data set that a curriculum cannot be found in.

    Raises:
        TrainingError: If it has no `question_id`.
    """
    if batches and "question_id" not in (getattr(dataset, "column_names", None) or []):
        raise TrainingError("a curriculum needs a data set of known length with the column 'question_id'")


@contextmanager
def in_order(trainer: Any, batches: Sequence[Sequence[str]]) -> Generator[None]:
    """Let a TRL trainer make its data loader over the rows in the order of a curriculum; without batches over its own.

    The order is that of the whole run and is gone through once: a run that was to last some epochs is told its number of steps instead. Where a
    trainer answers a question several times, or goes through its responses several times, the order has as many fewer rows.
    """
    if not batches:
        yield
        return
    whole, shuffled, answers = trainer.train_dataset, trainer.shuffle_dataset, getattr(trainer, "num_generations", 1)
    args, iterations = trainer.args, getattr(trainer, "num_iterations", 1)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * (len(whole) * answers * iterations // step))
    generation = getattr(args, "generation_batch_size", None) or step
    num_rows = math.ceil(args.max_steps * step / (generation * iterations)) * generation // answers
    trainer.train_dataset = whole.select(curriculum_order(whole["question_id"], batches, num_rows, args.seed))
    trainer.shuffle_dataset = False
    try:
        yield
    finally:
        trainer.train_dataset, trainer.shuffle_dataset = whole, shuffled
