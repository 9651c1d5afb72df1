"""Which teacher, context and objective: every combination against its null and against the others, and how sure the first place is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float

from opdscope.config import Config
from opdscope.core.aggregation import Estimate, clustered_mean, clustered_statistic
from opdscope.core.divergences import signal_scale
from opdscope.core.randomness import generator
from opdscope.summary.looks import joint_width, over_null
from opdscope.summary.ranking import verdict_word
from opdscope.summary.teachers import NullGain, QuestionGains, null_of

Criterion = Literal["gain", "gain_per_push"]
Screening = Mapping[tuple[str, str], QuestionGains]

_RESAMPLES = 2000
"""Resamples of the questions, for the chance that a candidate is the best."""


@dataclass(frozen=True)
class Candidate:
    """One teacher with one objective."""

    teacher: str
    """Its name."""
    objective: str
    """What it is distilled by."""
    natural_gain: Estimate
    """In success per unit step, summed over a response."""
    gain_over_null: Estimate
    """The same minus its null's; what counts for plain gradient steps."""
    gain_over_live_null: float
    """The same against the null that a live monitor has (:mod:`opdscope.training.monitor`): what a schedule starts from."""
    gain_over_null_per_push: Estimate
    """Gain over null over the size of the push, √KL times the size of the objective's signal (:func:`opdscope.core.divergences.signal_scale`); what
    counts for updates of normalised size."""
    null: NullGain
    """What it had to beat."""
    verdict: str
    """In the words of :func:`opdscope.summary.ranking.verdicts`; those of all candidates hold together."""
    chance_best: float
    """Share of resamples of the questions in which it is the best of all, doing nothing included."""

    def value(self, criterion: Criterion) -> Estimate:
        """What the criterion compares."""
        return self.gain_over_null if criterion == "gain" else self.gain_over_null_per_push


@dataclass(frozen=True)
class Comparison:
    """Two candidates on the questions that both have, by the criterion; all comparisons hold together."""

    first: tuple[str, str]
    """Teacher and objective."""
    second: tuple[str, str]
    """Teacher and objective."""
    difference: Estimate
    """First minus second."""
    decided: bool
    """True where the interval excludes zero."""


@dataclass(frozen=True)
class Choice:
    """What to do, and everything that speaks for it."""

    kind: Literal["distil", "sharpen", "none", "not enough data"]
    """As in :class:`opdscope.advice.recipe.Recipe`."""
    candidates: list[Candidate]
    """Best first: those that help, by the criterion, then the others."""
    comparisons: list[Comparison]
    """The first candidate against every other."""
    chance_none: float
    """Share of resamples in which no candidate beats its null."""

    @property
    def first(self) -> Candidate | None:
        """The one to use; None unless the kind is distil."""
        return self.candidates[0] if self.kind == "distil" else None


def choose(names: Sequence[str], looks: Sequence[Screening], config: Config, criterion: Criterion) -> Choice:
    """The choice among real teachers and all objectives.

    Args:
        names: Real teachers, not nulls.
        looks: Per-question gains of everything at each look (:func:`opdscope.summary.looks.screen_looks`); the last one is judged, by intervals that
            hold together over all looks, since a run that ranks teachers stopped where one of them was clear.
        config: Objectives, confidence, least useful gain.
        criterion: What is to be largest.
    """
    screening = looks[-1]
    keys = [(name, objective) for name in names for objective in config.objectives if (name, objective) in screening]
    words = _verdicts(keys, looks, config)
    chances, nothing = _chances(keys, screening, config, criterion)
    candidates = [_candidate(key, screening, config, words[key], chances[key]) for key in keys]
    candidates.sort(key=lambda c: (c.verdict != "helps", math.isnan(c.value(criterion).value), -c.value(criterion).value))
    kind = _kind([candidate.verdict for candidate in candidates])
    return Choice(kind, candidates, _comparisons(candidates, looks, config, criterion), nothing)


def _kind(words: Sequence[str]) -> Literal["distil", "sharpen", "none", "not enough data"]:
    if "helps" in words:
        return "distil"
    if any(word.startswith("null ") for word in words):
        return "sharpen"
    return "none" if words and all(word in ("harms", "does not help") for word in words) else "not enough data"


def _verdicts(keys: Sequence[tuple[str, str]], looks: Sequence[Screening], config: Config) -> dict[tuple[str, str], str]:
    """Verdicts on all teachers and objectives, which hold together: the best of many is chosen from them."""
    if not keys:
        return {}
    level, screening = config.analysis.confidence, looks[-1]

    def numbers(screening: Screening) -> Float[np.ndarray, "question test"]:
        gains = [screening[key].natural_gain for key in keys]
        return np.stack([*gains, *(over_null(screening, *key, config) for key in keys)], axis=-1)

    values, width = numbers(screening), joint_width([numbers(look) for look in looks], config, "advice")
    found: dict[tuple[str, str], str] = {}
    for key, own, beyond in zip(keys, values.T[: len(keys)], values.T[len(keys) :], strict=True):
        gain, over = (clustered_mean(values, level, width) for values in (own, beyond))
        found[key] = verdict_word(gain, over, null_of(screening, *key, config).name is not None, config.analysis.smallest_gain)
    return found


def _sums(key: tuple[str, str], screening: Screening, config: Config) -> Float[np.ndarray, "question 3"]:
    """Gain over null, squared push, and one, on every question; NaN where the teacher has no gain."""
    above = over_null(screening, *key, config)
    push = signal_scale(key[1]) ** 2 * screening[key].reverse_kl
    return np.stack([above, np.where(np.isnan(above), np.nan, push), np.where(np.isnan(above), np.nan, 1.0)], axis=-1)


def _per_push(sums: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    gain, push, count = np.moveaxis(sums, -1, 0)
    safe = (count > 0) & (push > 0)
    return np.where(safe, gain / np.sqrt(np.where(safe, count * push, 1.0)), np.nan)


def _candidate(key: tuple[str, str], screening: Screening, config: Config, word: str, chance: float) -> Candidate:
    level, own = config.analysis.confidence, screening[key]
    sums = _sums(key, screening, config)
    return Candidate(
        *key,
        natural_gain=clustered_mean(own.natural_gain, level),
        gain_over_null=clustered_mean(sums[:, 0], level),
        gain_over_live_null=float(np.nanmean(own.natural_gain - null_of(screening, *key, config, at_its_entropy=False).natural_gain)),
        gain_over_null_per_push=clustered_statistic(sums, lambda s: float(_per_push(s)), level),
        null=null_of(screening, *key, config),
        verdict=word,
        chance_best=chance,
    )


def _chances(
    keys: Sequence[tuple[str, str]], screening: Screening, config: Config, criterion: Criterion
) -> tuple[dict[tuple[str, str], float], float]:
    """Bayesian bootstrap over questions: how often each candidate is the best of all, and how often none beats its null."""
    if not keys:
        return {}, float("nan")
    sums = np.stack([_sums(key, screening, config) for key in keys])
    present = ~np.isnan(sums).any(axis=-1)
    weights = generator(config.seed, "advice", "resamples").exponential(size=(_RESAMPLES, sums.shape[1]))
    totals = np.einsum("rq,kqc->rkc", weights, np.where(np.expand_dims(present, -1), sums, 0.0))
    count = np.where(totals[..., 2] > 0, totals[..., 2], np.nan)
    values = totals[..., 0] / count if criterion == "gain" else _per_push(totals)
    best = np.argmax(np.concatenate([np.zeros((_RESAMPLES, 1)), np.nan_to_num(values, nan=-np.inf)], axis=1), axis=1)
    shares = np.bincount(best, minlength=len(keys) + 1) / _RESAMPLES
    return dict(zip(keys, shares[1:].tolist(), strict=True)), float(shares[0])


def _comparisons(candidates: Sequence[Candidate], looks: Sequence[Screening], config: Config, criterion: Criterion) -> list[Comparison]:
    if len(candidates) < 2:
        return []
    keys = [(candidate.teacher, candidate.objective) for candidate in candidates]
    # all pairs are one family, since which of them comes first is seen from the same numbers
    pairs = list(combinations(keys, 2))

    def differences(screening: Screening) -> Float[np.ndarray, "question test"]:
        sums = {key: _sums(key, screening, config) for key in keys}
        return np.stack([_difference(sums[first], sums[second], criterion) for first, second in pairs], axis=-1)

    values, width = differences(looks[-1]), joint_width([differences(look) for look in looks], config, "advice", "comparisons")
    found: list[Comparison] = []
    for (first, second), column in zip(pairs[: len(keys) - 1], values.T, strict=False):
        difference = clustered_mean(column, config.analysis.confidence, width)
        found.append(Comparison(first, second, difference, bool(difference.low > 0 or difference.high < 0)))
    return found


def _difference(first: Float[np.ndarray, "question 3"], second: Float[np.ndarray, "question 3"], criterion: Criterion) -> np.ndarray:
    """Per question, numbers whose mean is the difference on the questions that both have and whose spread is that of its jackknife."""
    both = ~np.isnan(first).any(axis=1) & ~np.isnan(second).any(axis=1)
    found = np.full(len(first), np.nan)
    if criterion == "gain":
        found[both] = first[both, 0] - second[both, 0]
        return found
    totals, count = [sums[both].sum(axis=0) for sums in (first, second)], int(both.sum())
    whole = _per_push(totals[0]) - _per_push(totals[1])
    left_out = _per_push(totals[0] - first[both]) - _per_push(totals[1] - second[both])
    found[both] = count * whole - (count - 1) * left_out
    return found


def needed_factor(estimate: Estimate) -> float:
    """How many times as many questions it would take for the interval to exclude zero, if the number stays where it is; NaN if undefined.

    Example:
        >>> needed_factor(Estimate(0.25, -0.25, 0.75, 0.1, 20, 0.9))
        4.0
    """
    half = estimate.high - estimate.value
    return max(1.0, float((half / estimate.value) ** 2)) if estimate.value != 0 else float("inf")
