"""Per question sums, and from them each teacher's numbers: screening gains, gains over the null, targeted gains and alignment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.config import Config, same_entropy_name
from opdscope.core.aggregation import Estimate, bounded_estimate, clustered_mean, clustered_statistic, pooled_cosine, ratio
from opdscope.core.screening import screening_gain, teacher_pushes, value_corrections
from opdscope.records import Outcome, Role
from opdscope.summary.controls import Controls, corrections, fitted_values
from opdscope.summary.nodes import NodeArrays, NodeMeasures, Posterior
from opdscope.summary.paths import list_arrays


@dataclass(frozen=True)
class QuestionGains:
    """Screening of one (teacher, objective), one entry per question of the run; NaN where the teacher has no context or nothing is verified."""

    natural_gain: Float[np.ndarray, "question"]
    """Natural gain summed over a response."""
    gain: Float[np.ndarray, "question"]
    """Euclidean gain summed over a response."""
    reverse_kl: Float[np.ndarray, "question"]
    """KL(student ‖ teacher) summed over a response, mean over rollouts, in nats."""


def outcome_values(rollouts: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "rollout"]:
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE."""
    values = {Outcome.CORRECT: 1.0, Outcome.UNVERIFIABLE: np.nan}
    return np.array([values.get(Outcome(row["outcome"]), 0.0) for row in rollouts])


def measured_rollouts(tables: Mapping[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Measured rollouts by question, in order; every question of the run has an entry."""
    found: dict[str, list[dict[str, Any]]] = {row["question_id"]: [] for row in tables["questions"].select(["question_id"]).to_pylist()}
    for row in tables["rollouts"].select(["question_id", "rollout_index", "role", "outcome"]).to_pylist():
        if row["role"] == Role.MEASURED:
            found[row["question_id"]].append(row)
    return found


def screen_questions(
    tables: Mapping[str, pa.Table], informing: Sequence[str] = (), foretelling: Sequence[str] | None = None
) -> dict[tuple[str, str], QuestionGains]:
    """Screening gains of every teacher and objective on every question, teachers in the order in which they were stored.

    Args:
        tables: Every table of the run by name.
        informing: Teachers whose log-ratios serve as control variates: see :mod:`opdscope.core.controls`.
        foretelling: Teachers whose log-odds so far enter the fitted values of prefixes that take the place of the leave-one-out baseline: see
            :mod:`opdscope.core.values`; None for that baseline.
    """
    controls = Controls(tables, informing) if informing else None
    rollouts, divergences = measured_rollouts(tables), _divergences(tables)
    values = None
    if foretelling is not None:
        known = {q: {row["rollout_index"]: v for row, v in zip(rows, outcome_values(rows), strict=True)} for q, rows in rollouts.items()}
        values = fitted_values(tables, known, foretelling) or None
    sums = _sums(tables, controls, values)
    result: dict[tuple[str, str], QuestionGains] = {}
    for (teacher, objective), own in sums.items():
        gains = _gains(rollouts, own)
        divergence = np.array([np.mean(divergences.get((teacher, question_id), np.nan)) for question_id in rollouts])
        result[teacher, objective] = QuestionGains(gains[0], gains[1], divergence)
    return result


def _divergences(tables: Mapping[str, pa.Table]) -> dict[tuple[str, str], list[float]]:
    """Reverse KL of every scored response, by teacher and question."""
    found: dict[tuple[str, str], list[float]] = {}
    positions = tables["teacher_positions"]
    for row, values in zip(positions.select(["question_id", "teacher"]).to_pylist(), list_arrays(positions["reverse_kl"]), strict=True):
        found.setdefault((row["teacher"], row["question_id"]), []).append(float(np.sum(values, dtype=np.float64)))
    return found


@dataclass(frozen=True)
class _Sums:
    """What one rollout says of a teacher and an objective, of its signal and of its gradient."""

    push: Float[np.ndarray, "2"]
    """Sum over positions."""
    weighted: Float[np.ndarray, "2"] | None
    """The same, weighted by fitted values; None without them."""
    products: Float[np.ndarray, "2 control"] | None
    """Products with the control variates; None without them."""


_ByRollout = dict[str, dict[int, _Sums]]
"""By question and rollout."""


def _sums(
    tables: Mapping[str, pa.Table], controls: Controls | None, values: Mapping[tuple[str, int], Float[np.ndarray, "position"]] | None
) -> dict[tuple[str, str], _ByRollout]:
    """By teacher and objective: what is summed over each response."""
    found: dict[tuple[str, str], _ByRollout] = {}
    labels = tables["scores"].select(["question_id", "rollout_index", "teacher", "objective"]).to_pylist()
    signals, gradients = (list_arrays(tables["scores"][name]) for name in ("taken_signal", "taken_gradient"))
    for row, *both in zip(labels, signals, gradients, strict=True):
        rollout = row["question_id"], row["rollout_index"]
        own = _Sums(
            push=teacher_pushes(both),
            weighted=None if values is None else teacher_pushes([values[rollout] * pushed for pushed in both]),
            products=None if controls is None else np.array([controls.products(rollout, pushed) for pushed in both]),
        )
        found.setdefault((row["teacher"], row["objective"]), {}).setdefault(rollout[0], {})[rollout[1]] = own
    return found


def _gains(rollouts: Mapping[str, list[dict[str, Any]]], sums: _ByRollout) -> Float[np.ndarray, "2 question"]:
    """Natural and Euclidean gain on every question; NaN where no rollout is scored."""
    gains = np.full((2, len(rollouts)), np.nan)
    contributions: list[Float[np.ndarray, "2 rollout"]] = []
    products: list[Float[np.ndarray, "rollout 2 control"]] = []
    places = [i for i, question_id in enumerate(rollouts) if question_id in sums]
    for place, question_id in zip(places, (q for q in rollouts if q in sums), strict=True):
        # rollouts that are not scored yet, of an interrupted run or of a further look, tell nothing about any teacher
        rows = [row for row in rollouts[question_id] if row["rollout_index"] in sums[question_id]]
        own = [sums[question_id][row["rollout_index"]] for row in rows]
        known, pushes = outcome_values(rows), np.array([one.push for one in own]).T
        gains[:, place] = screening_gain(known, pushes)
        contribution = (known - (np.nan if np.isnan(known).all() else np.nanmean(known))) * pushes
        weighted = [one.weighted for one in own if one.weighted is not None]
        if weighted:
            taken = value_corrections(known, pushes, np.array(weighted).T)
            gains[:, place] -= np.mean(taken, axis=-1)
            contribution = contribution - taken
        contributions.append(contribution)
        stacked = [one.products for one in own if one.products is not None]
        if stacked:
            products.append(np.array(stacked))
    if products:
        for kind in range(2):
            gains[kind, places] -= corrections([values[kind] for values in contributions], [own[:, kind] for own in products])
    return gains


@dataclass(frozen=True)
class NullGain:
    """What a teacher has to beat: the best that can be had at its size of the push, or at its entropy, without knowing anything."""

    name: str | None
    """The null teacher; None where none has a positive gain: then the comparison is with doing nothing."""
    factor: float
    """What its signal is scaled by."""
    natural_gain: Float[np.ndarray, "question"]
    """Its scaled natural gain per question; NaN where the teacher has none, or where a KL is undefined, so that it cannot be scaled."""


def null_of(screening: Mapping[tuple[str, str], QuestionGains], teacher: str, objective: str, config: Config) -> NullGain:
    """The null that a teacher has to beat, by pooled gain; choosing the best one can only make the test harder.

    The student at fixed temperatures pushes as hard as the teacher does: a gain is linear in its signal and the signal's size grows as √KL,
    so its gain is scaled by √(KL of the teacher / KL of the null). The student at the teacher's own entropy is taken as it is.
    """
    own = screening[teacher, objective]
    best, pooled = NullGain(None, 0.0, np.where(np.isnan(own.natural_gain), np.nan, 0.0)), 0.0
    for name in (*config.nulls.temperatures, same_entropy_name(teacher)):
        null = screening.get((name, objective))
        if null is None:
            continue
        common = ~np.isnan(own.natural_gain) & ~np.isnan(null.natural_gain)
        push, size = (float(np.mean(kl[common])) if common.any() else 0.0 for kl in (own.reverse_kl, null.reverse_kl))
        if np.isnan(push + size):  # a push of unknown size has an unknown null to beat
            return NullGain(name, float("nan"), np.full_like(own.natural_gain, np.nan))
        if size <= 0:
            continue
        matched = name not in config.nulls.temperatures
        # a teacher equal to the student has a divergence of plus or minus rounding
        factor = 1.0 if matched else float(np.sqrt(max(push, 0.0) / size))
        gains = np.where(common, factor * null.natural_gain, np.nan)
        if np.nanmean(gains) > pooled:
            best, pooled = NullGain(name, factor, gains), float(np.nanmean(gains))
    return best


def gain_per_push(gains: QuestionGains, confidence: float) -> Estimate:
    """Natural gain over √KL of a response: what predicts where updates have a normalised size."""
    return clustered_statistic(push_sums(gains), per_push, confidence)


def push_sums(gains: QuestionGains) -> Float[np.ndarray, "question 3"]:
    """Natural gain, KL and one for each question; NaN where the gain is undefined."""
    return np.stack([gains.natural_gain, gains.reverse_kl, np.where(np.isnan(gains.natural_gain), np.nan, 1.0)], axis=-1)


def per_push(sums: Float[np.ndarray, "3"]) -> float:
    """From totals of :func:`push_sums` to mean gain over the root of the mean KL."""
    return float(sums[0] / sums[2] / np.sqrt(sums[1] / sums[2])) if sums[1] > 0 else float("nan")


@dataclass(frozen=True)
class Targeted:
    """What targeted rollouts say of one (teacher, objective) on one class of paths; each with an interval clustered by question."""

    natural_gain: Estimate
    """Natural gain summed over a response; the same quantity as screening's where all paths are taken."""
    gain_over_null: Estimate
    """The same, minus that of the null which screening says the teacher has to beat."""
    gain: Estimate
    """Euclidean gain summed over a response."""
    advantage: Estimate
    """Teacher advantage, mean over nodes."""
    mean_score: Estimate
    """Mean over nodes of the per-node cosine, which counts as zero as far as strata may not differ at all. Noise shrinks it, at all nodes alike, so
    its interval is a bound: it holds all that the nodes' own intervals leave open."""
    pooled_alignment: Estimate
    """Pooled cosine with noise-corrected norm."""
    num_nodes: int
    """Nodes it rests on."""
    num_undefined: int
    """Of these, nodes whose cosine is undefined."""


def summarize_targeted(
    measures: NodeMeasures,
    null: Float[np.ndarray, "node"],
    nodes: NodeArrays,
    posterior: Posterior,
    paths: str,
    config: Config,
) -> Targeted:
    """Weighted by inverse inclusion probability, clustered by question.

    Args:
        measures: The teacher's numbers at its nodes.
        null: Natural gain, at the same nodes, of the null that the teacher has to beat.
        nodes: All nodes.
        posterior: Success at all nodes.
        paths: `all`, `correct` or `incorrect`: the outcome of the path that a node lies on. The numbers themselves come from fresh continuations.
        config: Confidence.
    """
    shares = path_shares(measures, nodes, paths)
    score, gains, level = measures.score[:, 0], measures.gain[:, 0], config.analysis.confidence
    ideal, advantage = posterior.ideal_squared_norm[measures.index], measures.advantage[:, 0]
    return Targeted(
        natural_gain=clustered_mean(shares.totals(measures.natural_gain[:, 0]), level),
        gain_over_null=clustered_mean(shares.totals(measures.natural_gain[:, 0] - null), level),
        gain=clustered_mean(shares.totals(gains), level),
        advantage=clustered_statistic(_defined_sums(shares, advantage), ratio, level),
        mean_score=_mean_score(shares, measures, posterior, level),
        pooled_alignment=pooled_cosine(shares.sums(gains, ideal, measures.gradient_squared_norm), level),
        num_nodes=int(shares.chosen.sum()),
        num_undefined=int(np.isnan(score[shares.chosen]).sum()),
    )


@dataclass(frozen=True)
class PathShares:
    """How a teacher's nodes on one class of paths add up to one response of each question."""

    chosen: np.ndarray
    """Boolean per node: on a path of the class."""
    clusters: dict[str, np.ndarray]
    """Places of the chosen nodes by question."""
    weight: Float[np.ndarray, "node"]
    """Inverse inclusion probability."""
    size: dict[str, float]
    """Weight of a question's paths."""

    def totals(self, values: Float[np.ndarray, "node"]) -> Float[np.ndarray, "question"]:
        """Sum over a response of a question; NaN where a value is."""
        return np.array([np.sum(self.weight[i] * values[i]) / self.size[q] for q, i in self.clusters.items()])

    def sums(self, *columns: Float[np.ndarray, "node"]) -> Float[np.ndarray, "question column"]:
        """The same for several columns, with undefined nodes left out."""
        stacked = np.stack(columns, axis=-1)
        found = [np.nansum(self.weight[i, None] * stacked[i], axis=0) / self.size[q] for q, i in self.clusters.items()]
        return np.array(found).reshape(-1, len(columns))


def path_shares(measures: NodeMeasures, nodes: NodeArrays, paths: str) -> PathShares:
    """The weights of a teacher's nodes on `all`, `correct` or `incorrect` paths."""
    rows = [nodes.rows[i] for i in measures.index]
    chosen = np.array([paths == "all" or row["path_outcome"] == paths for row in rows], dtype=bool)
    path_weight = np.array([1.0 / row["path_inclusion"] for row in rows])
    weight = path_weight / np.array([row["inclusion"] for row in rows])
    clusters = _clusters(rows, chosen)
    per_path = {key: path_weight[index[0]] for key, index in _paths(rows, chosen).items()}
    size = {q: float(sum(w for (question, _), w in per_path.items() if question == q)) for q in clusters}
    return PathShares(chosen, clusters, weight, size)


def _mean_score(shares: PathShares, measures: NodeMeasures, posterior: Posterior, level: float) -> Estimate:
    differs = posterior.differs[measures.index]
    score, low, high = measures.score.T
    # a cosine is in its node's interval, or nothing differs and it counts as zero
    columns = differs * score, np.minimum(low, differs * low), np.maximum(high, differs * high)
    return bounded_estimate(*(clustered_statistic(_defined_sums(shares, values), ratio, level) for values in columns))


def _defined_sums(shares: PathShares, values: Float[np.ndarray, "node"]) -> Float[np.ndarray, "question 2"]:
    return shares.sums(values, np.where(np.isnan(values), np.nan, 1.0))


def _clusters(rows: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[str, np.ndarray]:
    grouped: dict[str, list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        grouped.setdefault(rows[i]["question_id"], []).append(i)
    return {question: np.array(members) for question, members in grouped.items()}


def _paths(rows: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[tuple[str, int], list[int]]:
    grouped: dict[tuple[str, int], list[int]] = {}
    for i in np.flatnonzero(chosen).tolist():
        grouped.setdefault((rows[i]["question_id"], rows[i]["rollout_index"]), []).append(i)
    return grouped
