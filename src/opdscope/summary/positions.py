"""What teachers say along scored responses, as flat arrays: one entry per position, one response after another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.summary.paths import list_arrays

Rollout = tuple[str, int]
"""Question and rollout index."""


def rollouts_of(table: pa.Table) -> list[Rollout]:
    """Question and rollout index of every row."""
    return list(zip(*(table[name].to_pylist() for name in ("question_id", "rollout_index")), strict=True))


def places_of(rollouts: Iterable[Rollout], lengths: Iterable[int]) -> dict[Rollout, slice]:
    """Where each response lies, in the order in which they first appear."""
    found: dict[Rollout, slice] = {}
    start = 0
    for rollout, length in zip(rollouts, lengths, strict=True):
        if rollout not in found:
            found[rollout] = slice(start, start + length)
            start += length
    return found


@dataclass(frozen=True)
class TeacherPositions:
    """All teachers at every position of the scored responses."""

    places: Mapping[Rollout, slice]
    """Where each response lies along the last axis."""
    centred: Float[np.ndarray, "teacher position"]
    """Log-ratio at the token taken less its mean under the student, in nats; zero of a teacher without a context for the question.

    Where a teacher excludes a token that the student may take, its divergence has no bound and its log-ratio no mean: it informs nothing there.
    """
    divergence: Float[np.ndarray, "teacher position"]
    """KL(student ‖ teacher) in nats, which may be infinite or NaN; zero of a teacher without a context for the question."""


def read_teacher_positions(table: pa.Table, teachers: Sequence[str], places: Mapping[Rollout, slice] | None = None) -> TeacherPositions:
    """Read the responses that are scored.

    Args:
        table: Columns question_id, rollout_index, teacher, log_ratio and reverse_kl of the table `teacher_positions`.
        teachers: Those to read, in this order.
        places: Where all responses of the table lie; None: in its order.
    """
    rollouts, names = rollouts_of(table), table["teacher"].to_pylist()
    ratios, divergences = (list_arrays(table[name]) for name in ("log_ratio", "reverse_kl"))
    where = places_of(rollouts, map(len, ratios)) if places is None else places
    ratio, divergence = np.zeros((2, len(teachers), max((place.stop for place in where.values()), default=0)))
    rows = {name: k for k, name in enumerate(teachers)}
    for rollout, name, own_ratio, own_divergence in zip(rollouts, names, ratios, divergences, strict=True):
        if (k := rows.get(name)) is not None:
            ratio[k, where[rollout]], divergence[k, where[rollout]] = own_ratio, own_divergence
    bounded = np.isfinite(divergence) & np.isfinite(ratio)
    with np.errstate(invalid="ignore"):
        ratio += divergence
    ratio[~bounded] = 0.0
    return TeacherPositions(where, ratio, divergence)
