"""Null teachers: the student at fixed temperatures and at each teacher's entropy, and random logits that push as hard as the teachers do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from jaxtyping import Float

from opdscope.config import NULL_CONTEXTS, RANDOM_LOGITS, same_entropy_name
from opdscope.core.divergences import entropy, kl_divergence
from opdscope.core.nulls import matched_strength, random_logits, tempered
from opdscope.core.randomness import generator
from opdscope.pipeline.experiment import Experiment
from opdscope.pipeline.scores import Array, Response, Scores, blocks, teacher_prompts, to_numpy
from opdscope.records import NullKind, Role, to_table

_PROBE_ROLLOUTS, _PROBE_POSITIONS = 32, 8
"""Rollouts, and positions of each, on which nulls are matched; both are spread evenly."""

_TEMPERATURES = np.geomspace(0.1, 10.0, 33)
_SCALES = np.geomspace(0.01, 10.0, 25)


@dataclass(frozen=True)
class RowKey:
    """Which next-token distribution a row is."""

    question_id: str
    """Its question."""
    rollout_index: int
    """Its rollout."""
    position: int
    """Its position in the response."""


@dataclass(frozen=True)
class NullTeacher:
    """A teacher made from the student's own distribution."""

    name: str
    """In every table."""
    kind: NullKind
    """How it is made."""
    strength: float
    """Temperature of a tempered student, scale of random logits."""
    seed: int
    """Of the run; random logits are drawn from it."""

    def rows(self, student_logprobs: Float[Array, "row vocab"], keys: Sequence[RowKey]) -> Float[Array, "row vocab"]:
        """Its log-probabilities beside the student's; random logits are drawn anew for each row, by what the row is."""
        if self.kind is NullKind.RANDOM_LOGITS:
            return random_logits(student_logprobs, _noise(student_logprobs, keys, self.seed), self.strength)
        return tempered(student_logprobs, self.strength)


def match_nulls(experiment: Experiment) -> None:
    """Find the strength of every null teacher, on a sample of the measured rollouts' positions."""

    def work(_: int) -> int:
        temperatures = experiment.config.nulls.temperatures
        rows = [_row(name, NullKind.TEMPERED, temperature) for name, temperature in temperatures.items()]
        responses = _probe_responses(experiment)
        experiment.run.write("nulls", "000000", to_table("nulls", rows + _matched(experiment, responses)))
        return sum(len(response.token_ids) for response in responses) * (1 + len(experiment.teachers))

    experiment.run_units("nulls", "nulls", [("000000", 1)], work)


def null_teachers(experiment: Experiment) -> list[NullTeacher]:
    """The stored null teachers, in order."""
    rows = experiment.run.table("nulls").to_pylist()
    return [NullTeacher(row["teacher"], NullKind(row["kind"]), row["strength"], experiment.config.seed) for row in rows]


def _matched(experiment: Experiment, responses: Sequence[Response]) -> list[dict[str, Any]]:
    """The student at each real teacher's mean entropy, and random logits at the real teachers' mean divergence from the student."""
    scores = Scores(experiment, responses, teacher_prompts(experiment))
    real = [t.name for t in experiment.config.teachers if t.privileged_context not in NULL_CONTEXTS]
    entropies: dict[str, list[np.ndarray]] = {name: [] for name in real}
    curves: dict[str, list[np.ndarray]] = {name: [] for name in real}
    divergences: list[np.ndarray] = []
    scaled: list[np.ndarray] = []
    for question_id in dict.fromkeys(response.question_id for response in responses):
        keys = [RowKey(question_id, r.rollout_index, t) for r in responses if r.question_id == question_id for t in r.positions]
        for chunk in scores.chunks(question_id):
            by_temperature, by_scale = _curves(chunk.student, keys[chunk.start :], experiment.config.seed)
            scaled.append(by_scale)
            for name, rows in chunk.teachers:
                if name in real:
                    entropies[name].append(to_numpy(entropy(rows)))
                    divergences.append(to_numpy(kl_divergence(chunk.student, rows)))
                    curves[name].append(by_temperature)
    found: list[dict[str, Any]] = []
    for name in real:
        if entropies[name]:
            wanted, curve = float(np.mean(np.concatenate(entropies[name]))), np.mean(np.concatenate(curves[name]), axis=0)
            temperature = matched_strength(_TEMPERATURES, curve, wanted)
            found.append(_row(same_entropy_name(name), NullKind.TEMPERED, temperature, name))
    if divergences:
        wanted, curve = float(np.mean(np.concatenate(divergences))), np.mean(np.concatenate(scaled), axis=0)
        found.append(_row(RANDOM_LOGITS, NullKind.RANDOM_LOGITS, matched_strength(_SCALES, curve, wanted)))
    return found


def _curves(
    student: Float[Array, "row vocab"], keys: Sequence[RowKey], seed: int
) -> tuple[Float[np.ndarray, "row temperature"], Float[np.ndarray, "row scale"]]:
    """Entropy of each row at each temperature, and its divergence from random logits at each scale."""
    by_temperature, by_scale = np.empty((len(student), len(_TEMPERATURES))), np.empty((len(student), len(_SCALES)))
    for block in blocks(student):
        rows = student[block]
        noise = _noise(rows, keys[block], seed)
        for k, temperature in enumerate(_TEMPERATURES.tolist()):
            by_temperature[block, k] = to_numpy(entropy(tempered(rows, temperature)))
        for k, scale in enumerate(_SCALES.tolist()):
            by_scale[block, k] = to_numpy(kl_divergence(rows, random_logits(rows, noise, scale)))
    return by_temperature, by_scale


def _probe_responses(experiment: Experiment) -> list[Response]:
    columns = ["question_id", "rollout_index", "role", "token_ids"]
    measured = [row for row in experiment.run.table("rollouts").select(columns).to_pylist() if row["role"] == Role.MEASURED]
    return [
        Response(row["question_id"], row["rollout_index"], tuple(row["token_ids"]), tuple(_spread(len(row["token_ids"]), _PROBE_POSITIONS)))
        for row in (measured[index] for index in _spread(len(measured), _PROBE_ROLLOUTS))
    ]


def _spread(size: int, count: int) -> list[int]:
    """At most `count` indices below `size`, evenly spaced."""
    return sorted({int((k + 0.5) * size / count) for k in range(count)}) if size else []


def _noise(like: Float[Array, "row vocab"], keys: Sequence[RowKey], seed: int) -> Float[Array, "row vocab"]:
    draws = [
        generator(seed, "random logits", key.question_id, key.rollout_index, key.position).standard_normal(like.shape[1], dtype=np.float32)
        for key in keys[: like.shape[0]]
    ]
    return array_namespace(like).asarray(np.stack(draws), device=device(like))


def _row(name: str, kind: NullKind, strength: float, matched_teacher: str = "") -> dict[str, Any]:
    return {"teacher": name, "kind": kind, "strength": strength, "matched_teacher": matched_teacher}
