"""Screening on random draws of questions and rollouts: coverage, bias, order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from page import Section, band, fixed
from population import Population
from scipy import stats

from opdscope.core.aggregation import clustered_mean, simultaneous_quantile
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


def coverage(population: Population, repetitions: int) -> Section:
    """How often each interval holds the truth, and how far each estimate is off on average."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for budget in BUDGETS:
        for name, (held, errors, known) in _repeat(population, budget, repetitions).items():
            share = np.nanmean(held, axis=0)
            bias, worst = "", 0.0
            if errors is not None:
                # the stored rollouts are a sample too: their own distance from the truth is no bias of the estimator
                error = np.sqrt(np.var(errors, axis=0) / repetitions + known**2)
                worst = float(np.max(np.abs(np.mean(errors, axis=0)) / error))
                bias = fixed(worst)
                checks.append((f"{name}, {budget}: bias within 4 Monte Carlo errors", worst < 4))
            shape = " × ".join(map(str, BUDGETS[budget]))
            rows.append([budget, shape, name, f"{share.mean():.1%}", f"{share.min():.1%}", f"{share.max():.1%}", bias])
            checks.append((f"{name}, {budget}: coverage within 88–92 %", bool(share.min() >= 0.88 and share.max() <= 0.92)))
    text = (
        f"{repetitions:,} repetitions a budget; {band(repetitions)} Teachers: {', '.join(SHOWN)}; reverse KL unless said; lowest and highest are "
        "over teachers or pairs. The last column is the largest bias, in Monte Carlo errors."
    )
    columns = ["budget", "questions × rollouts", "90 % interval of", "coverage", "lowest", "highest", "bias / its error"]
    return Section("Screening: coverage and bias", text, columns, rows, checks)


Outcome = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""Repetition × quantity: whether the interval held the truth, the error if it has one, and how far the stored rollouts can be from the truth."""


def _repeat(population: Population, budget: str, repetitions: int) -> dict[str, Outcome]:
    num_questions, num_rollouts = BUDGETS[budget]
    source = generator("truth", "screening", budget)
    shown, pairs = population.index(*SHOWN), [population.index(*pair) for pair in PAIRS]
    held: dict[str, list[Any]] = {}
    errors: dict[str, list[np.ndarray]] = {}
    whole = stored(population)
    known = {
        "natural gain": _known(whole.natural_gain[:, shown, 0] - population.natural_gain[:, shown, 0]),
        "gain": _known(whole.gain[:, shown, 0] - population.gain[:, shown, 0]),
        "natural gain, forward KL": _known(whole.natural_gain[:, shown, 1] - population.natural_gain[:, shown, 1]),
        "paired difference": _known(_pairs(whole.natural_gain[:, :, 0] - population.natural_gain[:, :, 0], pairs)),
    }
    for _ in range(repetitions):
        one = draw(population, num_questions, num_rollouts, source)
        differences = _pairs(one.natural_gain[:, :, 0], pairs)
        exact = _pairs(population.natural_gain[:, :, 0], pairs).mean(axis=0)
        for name, values, truth in (
            ("natural gain", one.natural_gain[:, shown, 0], population.natural_gain[:, shown, 0].mean(axis=0)),
            ("gain", one.gain[:, shown, 0], population.gain[:, shown, 0].mean(axis=0)),
            ("natural gain, forward KL", one.natural_gain[:, shown, 1], population.natural_gain[:, shown, 1].mean(axis=0)),
            ("paired difference", differences, exact),
        ):
            estimates = [clustered_mean(column, LEVEL) for column in values.T]
            held.setdefault(name, []).append([e.low <= t <= e.high for e, t in zip(estimates, truth.tolist(), strict=True)])
            errors.setdefault(name, []).append(values.mean(axis=0) - truth)
        held.setdefault(f"all {len(PAIRS)} differences together", []).append([_jointly(differences, exact, source)])
        question, outcomes, pushes = one.first_question
        held.setdefault("natural gain of one question", []).append(
            _one_question(outcomes, pushes[shown, 0], population.natural_gain[question, shown, 0])
        )
    return {
        name: (np.array(h), np.array(errors[name]) if name in errors else None, known.get(name, np.zeros(1))) for name, h in held.items()
    }


def stored(population: Population) -> Draw:
    """Every question with all its stored rollouts."""
    outcomes = population.outcomes
    natural = np.array([screening_gain(r, f) for r, f in zip(outcomes, population.natural_pushes, strict=True)])
    euclidean = np.array([screening_gain(r, f) for r, f in zip(outcomes, population.gradient_pushes, strict=True)])
    return Draw(natural, euclidean, population.reverse_kl.mean(axis=-1), (0, outcomes[0], population.natural_pushes[0]))


def _known(errors: np.ndarray) -> np.ndarray:
    return np.std(errors, axis=0, ddof=1) / np.sqrt(len(errors))


def _pairs(values: np.ndarray, pairs: list[list[int]]) -> np.ndarray:
    return np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=-1)


def order(population: Population, repetitions: int) -> Section:
    """Whether pairs of teachers are put in order, and the rank correlation over budgets."""
    names = ("good", "fair", "weak", "itself", "stylistic", "harmful", "sharpened", "flattened")
    population = population.only(*names)
    truth = population.natural_gain[:, :, 0].mean(axis=0)
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    far = np.array([abs(truth[a] - truth[b]) >= 0.15 for a, b in pairs])
    sign = np.array([np.sign(truth[a] - truth[b]) if abs(truth[a] - truth[b]) > 1e-9 else 0.0 for a, b in pairs])
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for num_questions, num_rollouts in ((10, 16), (20, 16), (40, 16), (40, 50), (80, 50)):
        source = generator("truth", "order", num_questions, num_rollouts)
        ordered, decided, wrong, undecided, correlation = [], [], [], [], []
        for _ in range(repetitions):
            gains = draw(population, num_questions, num_rollouts, source).natural_gain[:, :, 0]
            values = np.stack([gains[:, a] - gains[:, b] for a, b in pairs], axis=-1)
            width = simultaneous_quantile(values, LEVEL, source, 2000)
            intervals = [clustered_mean(column, LEVEL, width) for column in values.T]
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
        f"{repetitions:,} repetitions a budget; exact natural gains (reverse KL): {exact}. *In order*: all {int(far.sum())} of {len(pairs)} "
        "pairs at least .15 apart have the right sign. *Decided*: share of these pairs whose simultaneous interval excludes zero on the right "
        "side. *Nearer, undecided*: share of the other pairs left open. *Wrong*: some pair was decided wrongly, ties included."
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
    return Section("Screening: order of known teachers", text, columns, rows, checks)


def _jointly(values: np.ndarray, truth: np.ndarray, source: np.random.Generator) -> bool:
    width = simultaneous_quantile(values, LEVEL, source, 2000)
    intervals = [clustered_mean(column, LEVEL, width) for column in values.T]
    return all(e.low <= t <= e.high for e, t in zip(intervals, truth.tolist(), strict=True))


def _one_question(outcomes: np.ndarray, pushes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    half = stats.t.ppf(0.5 + LEVEL / 2, len(outcomes) - 1) * screening_error(outcomes, pushes)
    return np.abs(screening_gain(outcomes, pushes) - truth) <= half
