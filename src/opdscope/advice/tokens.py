"""Every token of the ordinary rollouts under one teacher and objective, as flat arrays, and its bins by a feature that a trainer can compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from opdscope.config import Config
from opdscope.core.alignment import ideal_norm_noise, ideal_squared_norm, natural_gain
from opdscope.core.screening import screening_gain
from opdscope.core.weighting import PartSums
from opdscope.summary.nodes import node_evidence, padded, read_nodes
from opdscope.summary.paths import list_arrays
from opdscope.summary.teachers import measured_rollouts, outcome_values
from opdscope.summary.weights import question_weights

DIVERGENCE_COLUMNS = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "generalized_jsd(0.5)": "jensen_shannon"}
"""Which stored divergence is that of an objective; others have none, and no weights by divergence."""

_BINS = 5
"""Bins of a feature, each with an equal share of the push."""


@dataclass(frozen=True)
class Rollouts:
    """Measured rollouts that one teacher scored, one entry each."""

    question: Int[np.ndarray, "rollout"]
    """Number of its question in the run."""
    index: Int[np.ndarray, "rollout"]
    """Its index among the question's."""
    outcome: Float[np.ndarray, "rollout"]
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE."""
    length: Int[np.ndarray, "rollout"]
    """Its tokens."""


@dataclass(frozen=True)
class Tokens:
    """All tokens, rollout after rollout."""

    num_questions: int
    """Questions of the run."""
    rollouts: Rollouts
    """Where they come from."""
    rollout: Int[np.ndarray, "token"]
    """Which rollout each belongs to."""
    features: Mapping[str, Float[np.ndarray, "token"]]
    """By name: depth, entropy, and divergence where the objective's is stored."""
    push: Float[np.ndarray, "token"]
    """KL(student ‖ teacher) in nats: squared size of the push, up to a factor."""
    signal: Float[np.ndarray, "token"]
    """Centred signal at the token that was taken."""
    signal_variance: Float[np.ndarray, "token"]
    """Variance of the signal under the student."""
    gradient: Float[np.ndarray, "token"]
    """Centred gradient at the token that was taken."""
    gradient_square: Float[np.ndarray, "token"]
    """Squared length of the gradient."""
    score_square: Float[np.ndarray, "token"]
    """Squared length of the gradient of the taken token's log-probability, 1 - 2 p + Σ p²."""

    def per_rollout(self, values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "rollout"]:
        """Sums over each response."""
        return np.bincount(self.rollout, values, minlength=len(self.rollouts.length))


def read_tokens(tables: Mapping[str, pa.Table], teacher: str, objective: str) -> Tokens:
    """Tokens of all measured rollouts that the teacher has scored with the objective."""
    questions = {q: i for i, q in enumerate(tables["questions"]["question_id"].to_pylist())}
    outcomes = {
        (q, row["rollout_index"]): value
        for q, rows in measured_rollouts(tables).items()
        for row, value in zip(rows, outcome_values(rows), strict=True)
    }
    scores = _lists(tables["scores"], ["taken_signal", "taken_gradient", "signal_variance", "gradient_squared_norm"], teacher, objective)
    columns = ["reverse_kl", "forward_kl", "jensen_shannon"]
    divergences = _lists(tables["teacher_positions"], columns, teacher)
    students = _lists(tables["student_positions"], ["entropy", "logprob", "collision"])
    keys = [key for key in scores if key in outcomes]
    length = np.array([len(scores[key][0]) for key in keys], dtype=np.int64)

    def flat(lists: Mapping[tuple[str, int], list[np.ndarray]], column: int) -> Float[np.ndarray, "token"]:
        return np.concatenate([np.zeros(0), *(lists[key][column] for key in keys)]).astype(np.float64)

    push = np.maximum(flat(divergences, 0), 0.0)  # rounding leaves some at -1e-9
    features = {"depth": np.concatenate([np.zeros(0), *(np.arange(n) for n in length)]), "entropy": flat(students, 0)}
    if objective in DIVERGENCE_COLUMNS:
        features["divergence"] = flat(divergences, columns.index(DIVERGENCE_COLUMNS[objective]))
    where = np.array([questions[q] for q, _ in keys], dtype=np.int64)
    known = Rollouts(where, np.array([i for _, i in keys], dtype=np.int64), np.array([outcomes[key] for key in keys]), length)
    score_square = 1.0 - 2.0 * np.exp(flat(students, 1)) + flat(students, 2)
    rollout = np.repeat(np.arange(len(keys)), length)
    return Tokens(
        len(questions), known, rollout, features, push, flat(scores, 0), flat(scores, 2), flat(scores, 1), flat(scores, 3), score_square
    )


def _lists(
    table: pa.Table, columns: list[str], teacher: str | None = None, objective: str | None = None
) -> dict[tuple[str, int], list[np.ndarray]]:
    """List columns of the rows of one teacher and objective, by question and rollout."""
    for name, wanted in (("teacher", teacher), ("objective", objective)):
        if wanted is not None:
            table = table.filter(pa.array([value == wanted for value in table[name].to_pylist()], pa.bool_()))
    arrays = [list_arrays(table[name]) for name in columns]
    keys = zip(table["question_id"].to_pylist(), table["rollout_index"].to_pylist(), strict=True)
    return {key: [column[i] for column in arrays] for i, key in enumerate(keys)}


def bin_edges(tokens: Tokens, feature: str) -> Float[np.ndarray, "edge"]:
    """Inner edges of bins with about equal shares of the push; equal values are never parted. No outcome has a say in them."""
    values = tokens.features[feature]
    order = np.argsort(values, kind="stable")
    total = np.cumsum(tokens.push[order])
    if not len(total) or total[-1] <= 0:
        return np.zeros(0)
    places = np.searchsorted(total, total[-1] * np.arange(1, _BINS) / _BINS)
    return np.array([edge for edge in np.unique(values[order][places]) if edge > values[order[0]]])


def screened_sums(
    tokens: Tokens, part: Int[np.ndarray, "token"], num_parts: int, use: Bool[np.ndarray, "rollout"] | None = None
) -> PartSums:
    """Gain and squared push of each part of the tokens on every question, from ordinary rollouts.

    Args:
        tokens: All of them.
        part: Which part each token belongs to; decided by what is known before it is taken, else the gain would be biased.
        num_parts: How many parts there are.
        use: Boolean per rollout; None takes all.
    """
    count = len(tokens.rollouts.length)
    place = tokens.rollout * num_parts + part
    pushed, signal = (
        np.bincount(place, values, minlength=count * num_parts).reshape(count, num_parts) for values in (tokens.push, tokens.signal)
    )
    gains, pushes = (np.full((tokens.num_questions, num_parts), np.nan) for _ in range(2))
    chosen = np.ones(count, dtype=bool) if use is None else use
    for question in np.unique(tokens.rollouts.question):
        own = np.flatnonzero(np.logical_and(tokens.rollouts.question == question, chosen))
        gains[question] = screening_gain(tokens.rollouts.outcome[own], signal[own].T)
        pushes[question] = pushed[own].mean(axis=0) if len(own) else np.nan
    return PartSums(gains, pushes)


@dataclass(frozen=True)
class NodeGains:
    """What targeted rollouts say of one teacher and objective at its nodes."""

    rows: list[dict[str, Any]]
    """Stored rows of the nodes."""
    natural_gain: Float[np.ndarray, "node"]
    """Unbiased."""
    ideal_squared_norm: Float[np.ndarray, "node"]
    """Squared length of the ideal gradient, corrected for noise; may be negative."""


def read_node_gains(tables: Mapping[str, pa.Table], teacher: str, objective: str, config: Config) -> NodeGains | None:
    """Gains at the nodes of targeted rollouts; None if there are none that stand for a response (`protocol: paper` has none)."""
    nodes = read_nodes(tables) if config.protocol == "default" else None
    if nodes is None or not nodes.rows:
        return None
    signals = {
        row["node_id"]: row["signal"]
        for row in tables["node_signals"].to_pylist()
        if (row["teacher"], row["objective"]) == (teacher, objective)
    }
    own = np.array([i for i, row in enumerate(nodes.rows) if row["node_id"] in signals], dtype=np.int64)
    success = node_evidence(tables, nodes, config).success(nodes.probs, nodes.outcomes)
    noise = ideal_norm_noise(nodes.logprobs, nodes.squared_probs, success.variance, success.correlations)
    ideal = ideal_squared_norm(nodes.logprobs, nodes.squared_probs, success.mean) - noise
    signal = padded([signals[nodes.rows[i]["node_id"]] for i in own], nodes.probs.shape[1])
    return NodeGains([nodes.rows[i] for i in own], natural_gain(nodes.logprobs[own], signal, success.mean[own]), ideal[own])


def node_parts(
    tables: Mapping[str, pa.Table], tokens: Tokens, nodes: NodeGains, feature: str, edges: Float[np.ndarray, "edge"]
) -> Int[np.ndarray, "node"]:
    """The bin of every node by a feature of its token."""
    ids = {q: i for i, q in enumerate(tables["questions"]["question_id"].to_pylist())}
    starts = np.concatenate([[0], np.cumsum(tokens.rollouts.length)])
    keys = zip(tokens.rollouts.question.tolist(), tokens.rollouts.index.tolist(), strict=True)
    place = dict(zip(keys, starts[:-1].tolist(), strict=True))
    token = [place[ids[row["question_id"]], row["rollout_index"]] + row["position"] for row in nodes.rows]
    return np.searchsorted(edges, tokens.features[feature][token], side="right")


def per_question(
    tables: Mapping[str, pa.Table], nodes: NodeGains, values: Float[np.ndarray, "node"], part: Int[np.ndarray, "node"], num_parts: int
) -> Float[np.ndarray, "question part"]:
    """Sum of a number over the nodes of a response, on every question and for each part; NaN where a question has no nodes of this teacher.

    Args:
        tables: Every table of the run.
        nodes: The teacher's nodes.
        values: The number at each.
        part: Which part each node belongs to; may depend on the outcome of the node's own path, since continuations are fresh.
        num_parts: How many parts there are.
    """
    ids = {q: i for i, q in enumerate(tables["questions"]["question_id"].to_pylist())}
    found = np.full((len(ids), num_parts), np.nan)
    place = np.array([ids[row["question_id"]] for row in nodes.rows], dtype=np.int64)
    found[np.unique(place)] = 0.0
    np.add.at(found, (place, part), question_weights(nodes.rows) * values)
    return found


def joined(
    screened: Float[np.ndarray, "question part"], targeted: Float[np.ndarray, "question part"]
) -> Float[np.ndarray, "question part"]:
    """Both unbiased estimates of the same gains in one, with the share of each that makes the spread of a question's total smallest.

    The share is the same for all questions and parts. Where a question has only one of the two, that is taken.
    """
    both = ~np.isnan(screened + targeted).any(axis=1)
    if both.sum() < 3:
        return screened
    covariance = np.cov(screened[both].sum(axis=1), targeted[both].sum(axis=1))
    scale = covariance[0, 0] + covariance[1, 1] - 2.0 * covariance[0, 1]
    share = float(np.clip((covariance[0, 0] - covariance[0, 1]) / scale, 0.0, 1.0)) if scale > 0 else 0.5
    mixed = share * targeted + (1.0 - share) * screened
    return np.where(np.expand_dims(both, 1), mixed, screened)
