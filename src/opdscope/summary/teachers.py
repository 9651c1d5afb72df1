"""Per question sums, and from them each teacher's numbers: screening gains, gains over the null, targeted gains and alignment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from opdscope.config import Config, same_entropy_name
from opdscope.core.aggregation import Estimate, bounded_estimate, clustered_mean, clustered_statistic, pooled_cosine, ratio
from opdscope.core.screening import screening_gain, value_corrections
from opdscope.records import Outcome, Role
from opdscope.summary.controls import corrections
from opdscope.summary.measures import NodeMeasures
from opdscope.summary.nodes import NodeArrays, Posterior
from opdscope.summary.responses import Responses, read_responses


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


def question_success(tables: Mapping[str, pa.Table]) -> dict[str, float]:
    """Share of correct measured rollouts by question, in [0, 1]; NaN where none could be verified."""
    outcomes = {name: outcome_values(rows) for name, rows in measured_rollouts(tables).items()}
    return {name: float(np.nanmean(own)) if np.any(~np.isnan(own)) else float("nan") for name, own in outcomes.items()}


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
    return screen_responses(read_responses(tables, informing, foretelling))


def screen_responses(responses: Responses) -> dict[tuple[str, str], QuestionGains]:
    """The same from responses that are read already, all of them or a part; teachers that are scored at none of them have no entry."""
    result: dict[tuple[str, str], QuestionGains] = {}
    chosen = np.flatnonzero(responses.scored.known.any(axis=(1, 2)))
    if not len(chosen):
        return result
    for k, gains in zip(chosen, _gains(responses, chosen), strict=True):
        teacher, objective = responses.scored.keys[k]
        compared = responses.compared[teacher]
        count, total = compared.sum(axis=1), np.sum(np.where(compared, responses.divergences[teacher], 0.0), axis=1)
        divergence = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        result[teacher, objective] = QuestionGains(gains[0], gains[1], divergence)
    return result


def _gains(responses: Responses, chosen: Int[np.ndarray, "key"]) -> Float[np.ndarray, "key 2 question"]:
    """Natural and Euclidean gain on every question; NaN where no rollout is scored."""
    scored = responses.scored
    # rollouts that are not scored yet, of an interrupted run or of a further look, tell nothing about any teacher
    used = (scored.known[chosen] & responses.present)[:, None]
    pushes, outcomes = scored.pushes[chosen], np.where(used, responses.outcomes, np.nan)
    gains = screening_gain(outcomes[:, 0], pushes.swapaxes(0, 1)).swapaxes(0, 1)
    verified = np.isfinite(outcomes)
    mean = np.sum(outcomes, axis=-1, keepdims=True, where=verified) / np.maximum(verified.sum(axis=-1, keepdims=True), 1)
    contributions = (outcomes - mean) * pushes
    if scored.weighted is not None:
        taken = value_corrections(outcomes, pushes, scored.weighted[chosen])
        gains -= np.sum(taken, axis=-1, where=used) / np.maximum(used.sum(axis=-1), 1)
        contributions -= taken
    if scored.products.shape[-1] > 0:
        gains -= corrections(contributions, scored.products[chosen], used)
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


def null_of(
    screening: Mapping[tuple[str, str], QuestionGains], teacher: str, objective: str, config: Config, *, at_its_entropy: bool = True
) -> NullGain:
    """The null that a teacher has to beat, by pooled gain; choosing the best one can only make the test harder.

    Without `at_its_entropy` it is the one that the live monitor has: the student at fixed temperatures, scaled.

    The student at fixed temperatures pushes as hard as the teacher does: a gain is linear in its signal and the signal's size grows as √KL,
    so its gain is scaled by √(KL of the teacher / KL of the null). The student at the teacher's own entropy is taken as it is.
    """
    own = screening[teacher, objective]
    best, pooled = NullGain(None, 0.0, np.where(np.isnan(own.natural_gain), np.nan, 0.0)), 0.0
    for name in (*config.nulls.temperatures, *((same_entropy_name(teacher),) if at_its_entropy else ())):
        null = screening.get((name, objective))
        if null is None:
            continue
        common = ~np.isnan(own.natural_gain) & ~np.isnan(null.natural_gain)
        push, size = (float(np.mean(kl[common])) if common.any() else 0.0 for kl in (own.reverse_kl, null.reverse_kl))
        if not np.isfinite(push + size):  # a push of unknown size has an unknown null to beat
            return NullGain(name, float("nan"), np.full_like(own.natural_gain, np.nan))
        if size <= 0:
            continue
        matched = name not in config.nulls.temperatures
        # a teacher equal to the student has a divergence of plus or minus rounding
        factor = 1.0 if matched else float(np.sqrt(max(push, 0.0) / size))
        gain = factor * float(np.mean(null.natural_gain[common]))
        if gain > pooled:
            best, pooled = NullGain(name, factor, np.where(common, factor * null.natural_gain, np.nan)), gain
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
        return self._added(values[:, None])[:, 0]

    def sums(self, *columns: Float[np.ndarray, "node"]) -> Float[np.ndarray, "question column"]:
        """The same for several columns, with undefined nodes left out."""
        return self._added(np.nan_to_num(np.stack(columns, axis=-1), posinf=np.inf, neginf=-np.inf))

    def _added(self, values: Float[np.ndarray, "node column"]) -> Float[np.ndarray, "question column"]:
        sizes = np.array([len(own) for own in self.clusters.values()], dtype=np.int64)
        order = np.concatenate([np.zeros(0, dtype=np.int64), *self.clusters.values()])
        found = np.add.reduceat(self.weight[order, None] * values[order], np.cumsum(sizes) - sizes, axis=0)
        return found / np.array(list(self.size.values()))[:, None]


def path_shares(measures: NodeMeasures, nodes: NodeArrays, paths: str) -> PathShares:
    """The weights of a teacher's nodes on `all`, `correct` or `incorrect` paths."""
    rows = [nodes.rows[i] for i in measures.index]
    chosen = np.array([paths == "all" or row["path_outcome"] == paths for row in rows], dtype=bool)
    path_weight = np.array([1.0 / row["path_inclusion"] for row in rows])
    weight = path_weight / np.array([row["inclusion"] for row in rows])
    clusters = _clusters(rows, chosen)
    size = dict.fromkeys(clusters, 0.0)
    for (question, _), index in _paths(rows, chosen).items():
        size[question] += float(path_weight[index[0]])
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
