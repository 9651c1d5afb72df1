"""Weights by token, by outcome class and by question; used only where they are shown to help on data that they were not fitted to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from opdscope.advice.tokens import NodeGains, Tokens, bin_edges, joined, node_parts, per_question, screened_sums
from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_mean, clustered_statistic
from opdscope.core.randomness import generator
from opdscope.core.screening_errors import moderated_errors
from opdscope.core.shrinkage import shrink
from opdscope.core.weighting import (
    MOST_WEIGHT,
    HeldOut,
    PartSums,
    cross_fit,
    fit_weights,
    gain_per_push,
    improvements,
    scale_to_push,
    weigh,
)

CLASSES = ("correct", "incorrect")
"""Classes of responses; incorrect includes truncated ones."""


@dataclass(frozen=True)
class Parts:
    """One way to part the push, its weights, and what they brought on held-out data."""

    name: str
    """The feature, or `outcome`."""
    sums: PartSums
    """Gains and squared pushes."""
    weights: Float[np.ndarray, "part"]
    """Fitted to all data; to be used only if the improvement excludes zero."""
    improvement: Estimate
    """Held-out gain per size of the push with weights minus without."""
    edges: Float[np.ndarray, "edge"]
    """Inner edges of a feature's bins; empty for outcomes."""
    share_of_tokens: Float[np.ndarray, "part"]
    """Of all tokens."""

    @property
    def helps(self) -> bool:
        """True where the held-out improvement is shown to be above zero."""
        return self.improvement.low > 0

    def gains(self, confidence: float) -> list[Estimate]:
        """Natural gain of each part, per response."""
        return [clustered_mean(column, confidence) for column in self.sums.gains.T]


class _Parted(NamedTuple):
    name: str
    edges: Float[np.ndarray, "edge"]
    sums: PartSums
    share_of_tokens: Float[np.ndarray, "part"]


def token_parts(tables: Mapping[str, pa.Table], tokens: Tokens, nodes: NodeGains | None, config: Config) -> list[Parts]:
    """Weights of tokens by each feature that has bins; their improvements hold together.

    Gains are from ordinary and, where there are any, targeted rollouts. Questions in two halves: each is weighted by what the other says.
    """
    found: list[_Parted] = []
    for feature, values in tokens.features.items():
        edges = bin_edges(tokens, feature)
        if not len(edges):
            continue
        part, count = np.searchsorted(edges, values, side="right"), len(edges) + 1
        sums = screened_sums(tokens, part, count)
        if nodes is not None:
            gains = per_question(tables, nodes, nodes.natural_gain, node_parts(tables, tokens, nodes, feature, edges), count)
            sums = PartSums(joined(sums.gains, gains), sums.pushes)
        found.append(_Parted(feature, edges, sums, np.bincount(part, minlength=count) / len(part)))
    return _judged(found, config)


def outcome_parts(tables: Mapping[str, pa.Table], tokens: Tokens, nodes: NodeGains, config: Config) -> Parts:
    """Weights by the outcome of the response. Gains are from targeted rollouts only: those of the response itself know its outcome."""
    right = np.array([row["path_outcome"] == "correct" for row in nodes.rows], dtype=bool)
    gains = per_question(tables, nodes, nodes.natural_gain, np.where(right, 0, 1), len(CLASSES))
    push, length = tokens.per_rollout(tokens.push), tokens.rollouts.length
    pushes, counts = np.zeros(gains.shape), np.zeros(gains.shape)
    verified = np.zeros(len(gains))
    for i, outcome in enumerate(tokens.rollouts.outcome):
        if not np.isnan(outcome):
            place = tokens.rollouts.question[i], 0 if outcome > 0.5 else 1
            pushes[place] += push[i]
            counts[place] += length[i]
            verified[place[0]] += 1
    pushes /= np.maximum(verified, 1)[:, None]
    shares = counts.sum(axis=0) / max(counts.sum(), 1)
    return _judged([_Parted("outcome", np.zeros(0), PartSums(np.where(verified[:, None] > 0, gains, np.nan), pushes), shares)], config)[0]


def _judged(found: list[_Parted], config: Config) -> list[Parts]:
    if not found:
        return []
    level = config.analysis.confidence
    questions = len(found[0].sums.gains)
    fold = generator(config.seed, "advice", "halves").permutation(questions) % 2
    held_out = [cross_fit(parted.sums, fold, level) for parted in found]
    judged = improvements(held_out, level, generator(config.seed, "advice", "weights", found[0].name))
    return [
        Parts(own.name, own.sums, fit_weights(own.sums, level), improvement, own.edges, own.share_of_tokens)
        for own, improvement in zip(found, judged, strict=True)
    ]


def only(parts: Parts, index: int, confidence: float) -> Estimate:
    """Gain per size of the push if only one part is trained on."""
    mask = np.arange(parts.sums.gains.shape[1]) == index
    return clustered_statistic(_counted(weigh(parts.sums, mask.astype(np.float64))[:, :2]), _mean_gain_per_push, confidence)


def whole(parts: Parts, confidence: float) -> Estimate:
    """Gain per size of the push if all parts are trained on."""
    return clustered_statistic(_counted(weigh(parts.sums, np.ones(1))[:, 2:]), _mean_gain_per_push, confidence)


def _counted(sums: Float[np.ndarray, "question 2"]) -> Float[np.ndarray, "question 3"]:
    return np.column_stack([sums, np.ones(len(sums))])


def _mean_gain_per_push(sums: Float[np.ndarray, "3"]) -> float:
    return gain_per_push(sums[:2] / sums[2])


@dataclass(frozen=True)
class QuestionWeights:
    """Weights of questions."""

    weights: Float[np.ndarray, "question"]
    """Fitted to all rollouts; 1 where a question has no gain of its own."""
    improvement: Estimate
    """Held-out gain per size of the push with weights minus without."""

    @property
    def helps(self) -> bool:
        """True where the held-out improvement is shown to be above zero."""
        return self.improvement.low > 0


def question_weighting(tokens: Tokens, config: Config) -> QuestionWeights:
    """Weight of each question, by its gain per squared push, drawn towards the average of all as far as it is noise.

    Judged on rollouts in two halves: the weights of each half are used on the gains of the other.
    """
    level = config.analysis.confidence
    first = tokens.rollouts.index % 2 == 0
    part = np.zeros(len(tokens.rollout), dtype=np.int64)
    halves = [first, ~first]
    sums = [screened_sums(tokens, part, 1, use) for use in halves]
    weighed = [weigh(sums[1 - k], _fit_questions(tokens, sums[k], halves[k])[:, None]) for k in range(2)]
    improvement = improvements([HeldOut(weighed[0] + weighed[1])], level, generator(config.seed, "advice", "questions"))[0]
    everything = np.ones(len(first), dtype=bool)
    return QuestionWeights(_fit_questions(tokens, screened_sums(tokens, part, 1), everything), improvement)


def question_errors(tokens: Tokens, use: Bool[np.ndarray, "rollout"]) -> Float[np.ndarray, "question"]:
    """Standard error of each question's gain from some of its rollouts, moderated by the other questions; NaN where there are too few."""
    pushes, variances = tokens.per_rollout(tokens.signal), tokens.per_rollout(tokens.signal_variance)
    place, size = tokens.rollouts.question[use], int(np.max(tokens.rollouts.index, initial=-1)) + 1
    outcomes, own = np.full((tokens.num_questions, size), np.nan), np.zeros((tokens.num_questions, size))
    column = tokens.rollouts.index[use]
    outcomes[place, column], own[place, column] = tokens.rollouts.outcome[use], pushes[use]
    count = np.bincount(place, minlength=tokens.num_questions)
    variance = np.bincount(place, variances[use], minlength=tokens.num_questions) / np.maximum(count, 1)
    return moderated_errors(outcomes, own, variance).error


def _fit_questions(tokens: Tokens, sums: PartSums, use: np.ndarray) -> Float[np.ndarray, "question"]:
    gains, pushes = sums.gains[:, 0], sums.pushes[:, 0]
    errors = question_errors(tokens, use)
    known = ~np.isnan(gains) & ~np.isnan(errors) & (pushes > 0)
    weights = np.ones(len(gains))
    total = float(np.sum(gains[known]))
    if known.sum() < 2 or total <= 0:
        return weights
    rate = total / float(np.sum(pushes[known]))
    shrunk = shrink(gains[known] / pushes[known], errors[known] / pushes[known], centre=rate)
    weights[known] = np.clip(shrunk.mean / rate, 0.0, MOST_WEIGHT)
    weights[known] = scale_to_push(weights[known], pushes[known])
    return weights
