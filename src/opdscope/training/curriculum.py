"""Which question a row asks, and the order in which a curriculum asks them."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
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
