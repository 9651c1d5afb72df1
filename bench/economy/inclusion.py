"""Which nodes are drawn: variance of a sum over a path times what it costs, by how inclusion probabilities are chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from page import Section
from worlds import NAMES, Question, Rollouts, question, roll_out

from opdscope.core.divergences import entropy
from opdscope.core.early_range import EarlyRange, ScreenedResponses, learn_early_range
from opdscope.core.randomness import generator
from opdscope.core.sampling import (
    allocate_continuations,
    importance_per_cost,
    inclusion_probabilities,
    node_importance,
    systematic_sample,
    variance_importance,
)
from opdscope.models.exact import ReasoningWorld

NODES, LEAST, LEAST_PROB, UNIFORM_SHARE = 6, 3, 0.01, 0.25
"""As the pipeline's defaults have them."""

SETS = (
    ("good", "fair", "weak", "harmful", "stylistic", "random"),
    ("weak", "random"),
    ("good + random", "stylistic", "random"),
    ("random", "stylistic"),
)
"""Teachers of a run; one + another has the log-ratios of both."""

CONTINUATIONS = (32, 128)
STARTS = (np.arange(64) + 0.5) / 64


@dataclass(frozen=True)
class Screened:
    """A question with its ordinary rollouts."""

    own: Question
    rollouts: Rollouts
    signals: np.ndarray
    """Centred log-ratios: teacher × position × state × token."""
    reverse_kl: np.ndarray
    """Teacher × position × state."""

    @classmethod
    def of(cls, index: int, teachers: tuple[str, ...], num_rollouts: int) -> "Screened":
        """Question `index` of the world of chains."""
        world = ReasoningWorld()
        own = question(world, index)
        signals = np.array([np.sum([own.signal[NAMES.index(part)] for part in name.split(" + ")], axis=0) for name in teachers])
        divergence = np.log(np.sum(np.exp(own.student) * np.exp(signals), axis=-1))
        numbers = generator("economy", "inclusion", index).random((num_rollouts, len(own.student)))
        return cls(own, roll_out(world, own, numbers), signals, np.maximum(divergence, 0.0))

    def at(self, values: np.ndarray) -> np.ndarray:
        """What is stored by position and state, at each position of every rollout: … × rollout × position."""
        return values[..., np.arange(len(self.own.student)), self.rollouts.states]


def learned(screened: list[Screened]) -> EarlyRange:
    """The early range, from what the pipeline's screening has of these rollouts."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for own in screened:
        positions = np.arange(len(own.own.student))
        centred = own.signals[:, positions, own.rollouts.states, own.rollouts.tokens]
        size = len(own.signals)
        parts.append((own.at(entropy(own.own.student)).ravel(), centred.reshape(size, -1), own.at(own.reverse_kl).reshape(size, -1)))
    outcomes = np.array([own.rollouts.outcomes for own in screened])
    question = np.repeat(np.arange(len(screened)), outcomes.shape[1])
    length = np.full(outcomes.size, len(screened[0].own.student))
    return learn_early_range(
        ScreenedResponses(question, outcomes.ravel(), length, *(np.concatenate(own, axis=-1) for own in zip(*parts, strict=True)))
    )


class Path:
    """One rollout with everything known."""

    def __init__(self, screened: Screened, index: int, continuations: int) -> None:
        """Exact gains of every position, and the variance that its continuations would leave."""
        own = screened.own
        at = np.arange(len(own.student)), screened.rollouts.states[index]
        probs, success, signals = np.exp(own.student)[at], own.success[at], screened.signals[:, *at]
        scale = np.sqrt(np.sum(probs * signals**2, axis=(1, 2)))[:, None]
        counts = np.array([allocate_continuations(p, continuations, LEAST, p > LEAST_PROB) for p in probs])
        noise = np.where(counts > 0, (probs * signals) ** 2 * success * (1.0 - success) / np.maximum(counts, 1), 0.0)
        self.gains, self.noise = np.sum(probs * success * signals, axis=-1) / scale, np.sum(noise, axis=-1) / scale**2
        self.entropy, self.reverse_kl = entropy(own.student[at]), screened.reverse_kl[:, *at]
        self.bound, self.continuations = node_importance(np.sum(probs**2, axis=-1), self.reverse_kl), continuations
        self.cost = np.maximum(len(probs) - np.arange(len(probs)) - 1.0, 1.0)
        self.tokens = self.cost * counts.sum(axis=-1)

    def importance(self, early: EarlyRange, by_range: bool, by_cost: bool) -> np.ndarray:
        """The pipeline's weights."""
        found = self.bound
        if by_range:
            found = variance_importance(self.reverse_kl, early.shares(self.entropy, self.reverse_kl, self.bound), self.continuations)
        return importance_per_cost(found, self.cost) if by_cost else found

    def best(self, by_cost: bool) -> np.ndarray:
        """With exact gains known."""
        found = np.sqrt(np.mean(self.gains**2 + self.noise, axis=0))
        return importance_per_cost(found, self.cost) if by_cost else found

    def measured(self, importance: np.ndarray) -> tuple[float, float, float, float]:
        """Variance between draws of nodes, from continuations, tokens, and the bias in deviations; means over teachers."""
        inclusion = inclusion_probabilities(importance, NODES, UNIFORM_SHARE)
        drawn = [systematic_sample(inclusion, start) for start in STARTS]
        sums = np.array([np.sum(self.gains[:, own] / inclusion[own], axis=1) for own in drawn])
        away = sums - self.gains.sum(axis=1)
        noise = float(np.mean(np.sum(self.noise / inclusion, axis=1)))
        spread = np.std(sums, axis=0)
        bias = float(np.mean(np.abs(np.mean(away, axis=0)) / np.where(spread > 1e-9, spread, 1.0)))
        return float(np.mean(away**2)), noise, float(np.sum(inclusion * self.tokens)), bias


def inclusion(num_questions: int, num_rollouts: int, num_paths: int) -> Section:
    """One row per set of teachers, continuations a node and choice of inclusion probabilities."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    ways = {
        "freedom and push": (False, False),
        "+ cost": (False, True),
        "+ early range": (True, False),
        "+ early range and cost (default)": (True, True),
    }
    worst = 0.0
    for teachers in SETS:
        screened = [Screened.of(index, teachers, num_rollouts) for index in range(num_questions)]
        early = learned(screened)
        for continuations in CONTINUATIONS:
            paths = [Path(own, index, continuations) for own in screened for index in range(num_paths)]
            chosen = {name: [path.importance(early, *way) for path in paths] for name, way in ways.items()}
            chosen |= {"bound: exact gains known, and cost": [path.best(True) for path in paths]}
            products: dict[str, float] = {}
            for name, importance in chosen.items():
                each = np.mean([path.measured(own) for path, own in zip(paths, importance, strict=True)], axis=0)
                between, noise, tokens, bias = each.tolist()
                products[name], worst = (between + noise) * tokens, max(worst, bias)
                economy = products["freedom and push"] / products[name]
                share = f"{early.explained.sum():.0%}"
                rows.append(
                    [", ".join(teachers), share, continuations, name, f"{between:.4f}", f"{noise:.4f}", f"{tokens:,.0f}", f"{economy:.2f}×"]
                )
            default = products["+ early range and cost (default)"]
            label = f"{', '.join(teachers)}; {continuations} continuations"
            checks.append((f"{label}: the default costs less than freedom and push alone", default < products["freedom and push"]))
    checks.append((f"sums over nodes have the mean of the whole path (bias {worst:.3f} of their deviation at most)", worst < 0.05))
    text = (
        f"The chains; {num_questions} questions, {num_rollouts} ordinary rollouts each, from which the early range is learned; {num_paths} paths of "
        f"each, {NODES} nodes a path. Variance of the estimated sum of natural gains over a path, in the path's own signal variance, mean over "
        "teachers: exact over where the draw begins (*between*), and from continuations as expected from exact successes (*noise*). *Explained*: "
        "share of the variance of outcomes that the teachers' log-ratios foretell at questions left out. *Economy*: how many times less variance "
        "times tokens than with freedom and push alone (`targeted.include_by_range` and `targeted.include_by_cost` off). With few continuations "
        "a node its noise counts for more than what it may gain, and knowing where outcomes are settled saves little; what cost saves is the same "
        "everywhere. In the tree every position of a path is a node."
    )
    columns = ["teachers", "explained", "continuations", "inclusion by", "between", "noise", "tokens", "economy"]
    return Section("Importance sampling of nodes", text, columns, rows, checks)
