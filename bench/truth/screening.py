"""Screening on random draws of questions and rollouts: coverage, bias, order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from page import Section, band, fixed
from population import Population
from scipy import stats

from opdscope.core.aggregation import clustered_mean, simultaneous_interval, simultaneous_quantile
from opdscope.core.randomness import generator
from opdscope.core.screening import screening_error, screening_gain

LEVEL = 0.9
BUDGETS = {"small": (12, 8), "medium": (40, 16), "large": (80, 50)}
"""Questions and rollouts of each."""

SHOWN = ("good", "weak", "harmful", "stylistic", "random", "sharpened", "flattened")
PAIRS = (("good", "fair"), ("fair", "weak"), ("weak", "harmful"), ("good", "sharpened"), ("stylistic", "random"))


@dataclass(frozen=True)
class Draw:
    """One experiment: gains per question (question × teacher × objective) and divergences (question × teacher)."""

    natural_gain: np.ndarray
    gain: np.ndarray
    reverse_kl: np.ndarray
    first_question: tuple[int, np.ndarray, np.ndarray]
    """Index, outcomes and natural pushes of the first question drawn, for intervals of one question."""


def draw(population: Population, num_questions: int, num_rollouts: int, source: np.random.Generator) -> Draw:
    """Questions with replacement, rollouts of each without."""
    total = population.outcomes.shape[1]
    questions = source.integers(len(population.outcomes), size=num_questions)
    natural, euclidean, divergence = [], [], []
    first = None
    for question in questions.tolist():
        rollouts = source.permutation(total)[:num_rollouts]
        outcomes = population.outcomes[question, rollouts]
        pushes = population.natural_pushes[question][..., rollouts]
        natural.append(screening_gain(outcomes, pushes))
        euclidean.append(screening_gain(outcomes, population.gradient_pushes[question][..., rollouts]))
        divergence.append(np.mean(population.reverse_kl[question][:, rollouts], axis=-1))
        first = first or (question, outcomes, pushes)
    assert first is not None
    return Draw(np.array(natural), np.array(euclidean), np.array(divergence), first)


def coverage(population: Population, repetitions: int) -> list[Section]:
    """How often each interval holds the truth, and how far each estimate is off on average."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    shown, o = population.index(*SHOWN), 0
    pairs = [population.index(*pair) for pair in PAIRS]
    for budget, (num_questions, num_rollouts) in BUDGETS.items():
        source = generator("truth", "screening", budget)
        found: dict[str, list[np.ndarray]] = {}
        errors: dict[str, list[np.ndarray]] = {}
        joint: list[bool] = []
        for _ in range(repetitions):
            one = draw(population, num_questions, num_rollouts, source)
            for name, values, truth in (
                ("natural gain", one.natural_gain[:, shown, o], population.natural_gain[:, shown, o].mean(axis=0)),
                ("gain", one.gain[:, shown, o], population.gain[:, shown, o].mean(axis=0)),
                ("natural gain, forward KL", one.natural_gain[:, shown, 1], population.natural_gain[:, shown, 1].mean(axis=0)),
                ("paired difference", *_differences(one.natural_gain[:, :, o], population.natural_gain[:, :, o], pairs)),
            ):
                held, error = _held(values, truth)
                found.setdefault(name, []).append(held)
                errors.setdefault(name, []).append(error)
            joint.append(_jointly(*_differences(one.natural_gain[:, :, o], population.natural_gain[:, :, o], pairs), source))
            question, outcomes, pushes = one.first_question
            held = _one_question(outcomes, pushes[shown, o], population.natural_gain[question, shown, o])
            found.setdefault("natural gain of one question", []).append(held)
        for name, held in found.items():
            share = np.nanmean(np.array(held), axis=0)
            worst = (
                np.max(np.abs(np.mean(errors[name], axis=0)) / (np.std(errors[name], axis=0) / np.sqrt(repetitions)))
                if name in errors
                else np.nan
            )
            rows.append(
                [
                    budget,
                    f"{num_questions} × {num_rollouts}",
                    name,
                    f"{share.mean():.1%}",
                    f"{share.min():.1%}",
                    f"{share.max():.1%}",
                    fixed(worst),
                ]
            )
            checks.append((f"{name}, {budget}: coverage within 88–92 %", bool(share.min() >= 0.88 and share.max() <= 0.92)))
            if name in errors:
                checks.append((f"{name}, {budget}: bias within 4 Monte Carlo errors", bool(worst < 4)))
        share = float(np.mean(joint))
        rows.append(
            [
                budget,
                f"{num_questions} × {num_rollouts}",
                f"all {len(PAIRS)} differences together",
                f"{share:.1%}",
                f"{share:.1%}",
                f"{share:.1%}",
                "",
            ]
        )
        checks.append((f"differences together, {budget}: coverage within 88–92 %", 0.88 <= share <= 0.92))
    text = (
        f"{repetitions:,} repetitions a budget; {band(repetitions)} Teachers: {', '.join(SHOWN)}; reverse KL unless said. The last column is the largest bias "
        "over teachers, in standard errors of the mean over repetitions."
    )
    columns = ["budget", "questions × rollouts", "90 % interval of", "coverage", "lowest", "highest", "bias / its error"]
    return [Section("Screening: coverage and bias", text, columns, rows, checks)]


def order(population: Population, repetitions: int) -> list[Section]:
    """Whether pairs of teachers are put in order, and the rank correlation over budgets."""
    names = ("good", "fair", "weak", "itself", "stylistic", "harmful", "sharpened", "flattened")
    index = population.index(*names)
    truth = population.natural_gain[:, index, 0].mean(axis=0)
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    far = np.array([abs(truth[a] - truth[b]) >= 0.15 for a, b in pairs])
    sign = np.array([np.sign(truth[a] - truth[b]) if abs(truth[a] - truth[b]) > 1e-9 else 0.0 for a, b in pairs])
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for num_questions, num_rollouts in ((10, 16), (20, 16), (40, 16), (40, 50), (80, 50)):
        source = generator("truth", "order", num_questions, num_rollouts)
        ordered, decided, wrong, undecided, correlation = [], [], [], [], []
        for _ in range(repetitions):
            gains = draw(population, num_questions, num_rollouts, source).natural_gain[:, index, 0]
            values = np.stack([gains[:, a] - gains[:, b] for a, b in pairs], axis=-1)
            width = simultaneous_quantile(values, LEVEL, source, 2000)
            intervals = [simultaneous_interval(clustered_mean(column, LEVEL), width) for column in values.T]
            low, high = np.array([e.low for e in intervals]), np.array([e.high for e in intervals])
            decision = np.where(low > 0, 1.0, np.where(high < 0, -1.0, 0.0))
            ordered.append(bool(np.all(np.sign(values.mean(axis=0))[far] == sign[far])))
            decided.append(float(np.mean(decision[far] == sign[far])))
            wrong.append(bool(np.any((decision != 0) & (decision != sign))))
            undecided.append(float(np.mean(decision[~far] == 0)))
            correlation.append(stats.spearmanr(gains.mean(axis=0), truth).statistic)
        rows.append(
            [
                f"{num_questions} × {num_rollouts}",
                f"{num_questions * num_rollouts * (population.world.length + 1):,}",
                f"{np.mean(ordered):.1%}",
                f"{np.mean(decided):.1%}",
                f"{np.mean(undecided):.1%}",
                f"{np.mean(wrong):.1%}",
                fixed(float(np.mean(correlation)), 3),
            ]
        )
        if (num_questions, num_rollouts) == (40, 50):
            checks.append(
                ("40 questions × 50 rollouts order all pairs at least .15 apart in ≥ 95 % of repetitions", float(np.mean(ordered)) >= 0.95)
            )
        checks.append(
            (
                f"{num_questions} × {num_rollouts}: a wrong decision on any pair in ≤ 10 % of repetitions (+ 4 errors)",
                float(np.mean(wrong)) <= 0.1 + 4 * np.sqrt(0.09 / repetitions),
            )
        )
    exact = ", ".join(
        f"{name} {fixed(value, 3)}" for name, value in sorted(zip(names, truth.tolist(), strict=True), key=lambda item: -item[1])
    )
    text = (
        f"{repetitions:,} repetitions a budget; exact natural gains (reverse KL): {exact}. *In order*: all {int(far.sum())} of {len(pairs)} pairs at least .15 apart have the "
        "right sign. *Decided*: share of these pairs whose simultaneous interval excludes zero on the right side. *Nearer, undecided*: share of the other pairs "
        "left open. *Wrong*: some pair was decided wrongly, ties included."
    )
    columns = [
        "questions × rollouts",
        "tokens",
        "far pairs in order",
        "far pairs decided",
        "nearer pairs undecided",
        "any wrong decision",
        "rank correlation",
    ]
    return [Section("Screening: order of known teachers", text, columns, rows, checks)]


def _differences(values: np.ndarray, truth: np.ndarray, pairs: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    exact = truth.mean(axis=0)
    return np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=-1), np.array([exact[a] - exact[b] for a, b in pairs])


def _held(values: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimates = [clustered_mean(column, LEVEL) for column in values.T]
    held = np.array([e.low <= t <= e.high for e, t in zip(estimates, truth.tolist(), strict=True)])
    return held, np.array([e.value for e in estimates]) - truth


def _jointly(values: np.ndarray, truth: np.ndarray, source: np.random.Generator) -> bool:
    width = simultaneous_quantile(values, LEVEL, source, 2000)
    intervals = [simultaneous_interval(clustered_mean(column, LEVEL), width) for column in values.T]
    return all(e.low <= t <= e.high for e, t in zip(intervals, truth.tolist(), strict=True))


def _one_question(outcomes: np.ndarray, pushes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    half = stats.t.ppf(0.5 + LEVEL / 2, len(outcomes) - 1) * screening_error(outcomes, pushes)
    return np.abs(screening_gain(outcomes, pushes) - truth) <= half
