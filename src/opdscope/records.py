"""What is stored, as Arrow schemas with a version: one table per kind of record, one row per record.

Arrays along a response or over strata are list columns, so that a row is complete in itself. Undefined numbers are NaN, never null and never
zero. Every schema carries :data:`SCHEMA_VERSION` in its metadata; a reader refuses another version.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 4
"""Raised whenever the meaning or layout of a stored column changes."""


class Outcome(StrEnum):
    """What a verifier says of a response."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    TRUNCATED = "truncated"
    """The length limit ended it: not a success, and counted apart."""
    UNVERIFIABLE = "unverifiable"
    """The verifier gave no verdict in time: unknown, left out of estimates and counted."""


class Role(StrEnum):
    """What a rollout is for."""

    MEASURED = "measured"
    """Screening uses it, and paths are drawn from these."""
    DEMONSTRATION = "demonstration"
    """Source of solution contexts; never measured."""


class NullKind(StrEnum):
    """How a null teacher is made from the student."""

    TEMPERED = "tempered"
    """The student at another temperature."""
    RANDOM_LOGITS = "random logits"
    """The student with noise on its logits, drawn anew at every node."""


@dataclass(frozen=True)
class Question:
    """A question with a checkable answer."""

    question_id: str
    """Unique within the run, stable across runs of the same task and seed."""
    text: str
    """The question itself, without any instruction."""
    answer: str
    """The reference answer, as the verifier wants it and as an answer context shows it."""
    metadata: str = "{}"
    """JSON that the verifier may need."""
    solution: str = ""
    """A worked solution that comes with the task, as a reference-solution context shows it; empty if there is none."""


TAIL = -1
"""Token id of the tail stratum."""

_FLOATS = pa.list_(pa.float32())
_DOUBLES = pa.list_(pa.float64())
_TOKENS = pa.list_(pa.int32())


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()), metadata={"opdscope_schema_version": str(SCHEMA_VERSION)})


SCHEMAS: Mapping[str, pa.Schema] = {
    # One row per question, in the order of the task.
    "questions": _schema(
        question_id=pa.string(),
        text=pa.string(),
        answer=pa.string(),
        metadata=pa.string(),
        solution=pa.string(),
        prompt=pa.string(),
        prompt_token_ids=_TOKENS,
    ),
    # The student's own responses; token_ids include the end-of-sequence token where it was drawn.
    "rollouts": _schema(
        question_id=pa.string(), rollout_index=pa.int32(), role=pa.string(), token_ids=_TOKENS, text=pa.string(), outcome=pa.string()
    ),
    # What each teacher is shown; `available` is false where a question lacks what it needs, and `reason` says so.
    "contexts": _schema(
        question_id=pa.string(),
        teacher=pa.string(),
        available=pa.bool_(),
        reason=pa.string(),
        prompt=pa.string(),
        prompt_token_ids=_TOKENS,
        source_question_id=pa.string(),
        source_rollout_indices=pa.list_(pa.int32()),
    ),
    # Responses by a teacher under its own context: for the accuracy gap only.
    "teacher_rollouts": _schema(
        question_id=pa.string(), teacher=pa.string(), rollout_index=pa.int32(), num_tokens=pa.int32(), outcome=pa.string()
    ),
    # Teachers made from the student. `strength`: temperature, or scale of the noise; `matched_teacher`: whose mean entropy it has, or empty.
    "nulls": _schema(teacher=pa.string(), kind=pa.string(), strength=pa.float64(), matched_teacher=pa.string()),
    # The student at every position of a measured rollout. Lists: one entry per response token; entropy in nats.
    # logprob: of the token that was taken.
    "student_positions": _schema(question_id=pa.string(), rollout_index=pa.int32(), logprob=_FLOATS, entropy=_FLOATS, collision=_FLOATS),
    # A teacher beside the student at every position. Lists: one entry per response token; divergences and entropy in nats.
    # log_ratio: teacher's minus student's log-probability of the token that was taken. Overlap: see core.overlap.
    "teacher_positions": _schema(
        question_id=pa.string(),
        rollout_index=pa.int32(),
        teacher=pa.string(),
        reverse_kl=_FLOATS,
        forward_kl=_FLOATS,
        jensen_shannon=_FLOATS,
        entropy=_FLOATS,
        rare_mass=_FLOATS,
        overlap=_FLOATS,
        overlap_advantage=_FLOATS,
        log_ratio=_FLOATS,
    ),
    # One objective of one teacher at every position, reduced over the vocabulary (core.screening.ObjectiveRows).
    "scores": _schema(
        question_id=pa.string(),
        rollout_index=pa.int32(),
        teacher=pa.string(),
        objective=pa.string(),
        taken_signal=_FLOATS,
        taken_gradient=_FLOATS,
        signal_variance=_FLOATS,
        gradient_squared_norm=_FLOATS,
    ),
    # Gradients in the student's parameters, one row per group of questions and (teacher, objective); the ideal gradient has neither (both empty).
    # `coordinates`: a sketch that keeps inner products, of `num_parameters` coordinates, in units in which the mean over groups is that over
    # the questions; summed over a response. Written by `opdscope gradients`.
    "parameter_gradients": _schema(
        group=pa.int32(),
        teacher=pa.string(),
        objective=pa.string(),
        num_questions=pa.int32(),
        num_parameters=pa.int64(),
        coordinates=_FLOATS,
    ),
    # Places chosen for measurement. `path_inclusion`: chance of the rollout among those of its outcome; `inclusion`: of the position on the path,
    # NaN under `protocol: paper`, which draws no positions.
    "nodes": _schema(
        node_id=pa.string(),
        question_id=pa.string(),
        rollout_index=pa.int32(),
        position=pa.int32(),
        path_outcome=pa.string(),
        path_inclusion=pa.float64(),
        inclusion=pa.float64(),
        entropy=pa.float64(),
    ),
    # `protocol: paper` only: a token that a teacher chose at a node of a path, in a depth window. A node that several paths share is stored
    # under one of them; `rollout_index` and `path_outcome` are those of the path on which it was chosen.
    "choices": _schema(
        node_id=pa.string(),
        question_id=pa.string(),
        rollout_index=pa.int32(),
        path_outcome=pa.string(),
        teacher=pa.string(),
        window=pa.int32(),
        token_id=pa.int32(),
    ),
    # What further draws make of the nodes of a question, once it was decided how often nodes are drawn there; questions with one draw have no rows.
    # `inclusion` takes the place of the one in `nodes`: num_draws times that of one draw, over how many of the draws hold the node.
    "draws": _schema(question_id=pa.string(), node_id=pa.string(), num_draws=pa.int32(), inclusion=pa.float64()),
    # The strata of a node, in order; the last may be the tail (token_id -1). `forced_token_ids` holds one token per planned continuation;
    # where they are planned in rounds, those of the pilot, and for the tail one for each that it could ever get.
    # `terminal`: success where the token ends the response, else NaN. squared_prob: sum of squared probabilities in the stratum.
    "strata": _schema(
        node_id=pa.string(),
        stratum=pa.int32(),
        token_id=pa.int32(),
        token_text=pa.string(),
        student_prob=pa.float64(),
        squared_prob=pa.float64(),
        terminal=pa.float64(),
        forced_token_ids=_TOKENS,
    ),
    # Continuations planned in each round of a target that plans in rounds; without such rounds the plan is `forced_token_ids`.
    "rounds": _schema(round=pa.int32(), node_id=pa.string(), stratum=pa.int32(), first_index=pa.int32(), count=pa.int32()),
    # What a target was foretold to cost, written when its pilot was in and never again. `stage`: rollouts or continuations, whose tokens they are;
    # `pilot_tokens`: those that were drawn by then, part of `tokens`.
    "forecasts": _schema(stage=pa.string(), tokens=pa.float64(), pilot_tokens=pa.int64()),
    # One objective of one teacher at a node. Lists: one entry per stratum; signal and gradient are student-weighted means within it.
    "node_signals": _schema(
        node_id=pa.string(),
        teacher=pa.string(),
        objective=pa.string(),
        teacher_prob=_DOUBLES,
        signal=_DOUBLES,
        gradient=_DOUBLES,
        signal_variance=pa.float64(),
        gradient_squared_norm=pa.float64(),
        reverse_kl=pa.float64(),
    ),
    # Student samples from node and forced token to the end; token_ids do not repeat the forced token.
    "continuations": _schema(
        node_id=pa.string(),
        stratum=pa.int32(),
        continuation_index=pa.int32(),
        forced_token_id=pa.int32(),
        token_ids=_TOKENS,
        outcome=pa.string(),
    ),
    # With `targeted.score_continuations`: one teacher beside the student along a continuation. The list has one entry per token of its `token_ids`,
    # the centred log-ratio of core.controls. A teacher without a context for the question has no rows, nor has any null.
    "continuation_scores": _schema(
        node_id=pa.string(), stratum=pa.int32(), continuation_index=pa.int32(), teacher=pa.string(), centred_log_ratio=_FLOATS
    ),
}
"""Every stored table by name."""

TRAINING_SCHEMAS: Mapping[str, pa.Schema] = {
    # One row per evaluation of the live monitor. Gains are exponentially weighted means over the last steps, summed over a response, with standard
    # errors; `null_gain` is that of the student sharpened or flattened as hard as the teacher pushes. Undefined numbers are NaN.
    "training_steps": _schema(
        step=pa.int32(),
        objective=pa.string(),
        context=pa.string(),
        distillation_weight=pa.float64(),
        success=pa.float64(),
        success_error=pa.float64(),
        natural_gain=pa.float64(),
        natural_gain_error=pa.float64(),
        null_gain=pa.float64(),
        gain_over_null=pa.float64(),
        gain_over_null_error=pa.float64(),
        reverse_kl=pa.float64(),
        entropy=pa.float64(),
        length=pa.float64(),
        num_rollouts=pa.int32(),
        num_unverified=pa.int32(),
        num_steps=pa.float64(),
        best_share=pa.float64(),
        best_share_low=pa.float64(),
        best_share_high=pa.float64(),
        rl_alignment=pa.float64(),
        distillation_alignment=pa.float64(),
        mixed_alignment=pa.float64(),
        monitor_share=pa.float64(),
    ),
    # The same natural gain split by where the token stands: `axis` is depth (position in the response) or entropy (the student's, in nats).
    "training_bins": _schema(
        step=pa.int32(),
        axis=pa.string(),
        low=pa.float64(),
        high=pa.float64(),
        natural_gain=pa.float64(),
        natural_gain_error=pa.float64(),
        num_tokens=pa.float64(),
    ),
    # One row per finished probe: screening, and where asked for targeted rollouts, of the live student on fixed questions. `success_change`: against
    # the first probe, paired. `advantage` (a token) and `pooled_alignment` need targeted rollouts. `run`: its run directory.
    "training_probes": _schema(
        step=pa.int32(),
        teacher=pa.string(),
        success=pa.float64(),
        success_low=pa.float64(),
        success_high=pa.float64(),
        success_change=pa.float64(),
        success_change_low=pa.float64(),
        success_change_high=pa.float64(),
        natural_gain=pa.float64(),
        natural_gain_low=pa.float64(),
        natural_gain_high=pa.float64(),
        gain_over_null=pa.float64(),
        gain_over_null_low=pa.float64(),
        gain_over_null_high=pa.float64(),
        advantage=pa.float64(),
        advantage_low=pa.float64(),
        advantage_high=pa.float64(),
        pooled_alignment=pa.float64(),
        seconds=pa.float64(),
        run=pa.string(),
    ),
    # What a rule did, or would have done (`dry`), and why.
    "training_actions": _schema(
        step=pa.int32(), rule=pa.string(), action=pa.string(), before=pa.string(), after=pa.string(), reason=pa.string(), dry=pa.bool_()
    ),
}
"""Tables of a training run that is watched, by name; they lie in any directory, a run directory or not."""


def to_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the named schema.

    Raises:
        KeyError: If there is no such table, or a row lacks a column.
    """
    schema = SCHEMAS[name] if name in SCHEMAS else TRAINING_SCHEMAS[name]
    materialised = list(rows)
    return pa.table({field.name: pa.array([row[field.name] for row in materialised], field.type) for field in schema}, schema=schema)
