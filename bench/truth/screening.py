"""Screening on random draws of questions and rollouts: coverage, bias, order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from page import Section, band, fixed
from population import PUSHES, Population
from scipy import stats

from opdscope.core.aggregation import clustered_mean, simultaneous_quantile
from opdscope.core.randomness import generator
from opdscope.core.screening import screening_gain
from opdscope.core.screening_errors import PRIOR_FREEDOM, moderated_errors
from opdscope.summary.controls import corrections

LEVEL = 0.9
BUDGETS = {"small": (12, 8), "medium": (40, 16), "large": (80, 50)}
"""Questions and rollouts of each."""

ORDERED = (40, 50)
"""Questions and rollouts at which the order of teachers is to be right."""

SHOWN = ("good", "weak", "harmful", "stylistic", "random", "sharpened", "flattened")
PAIRS = (("good", "fair"), ("fair", "weak"), ("weak", "harmful"), ("good", "sharpened"), ("stylistic", "random"))


@dataclass(frozen=True)
class Draw:
    """One experiment: questions and rollouts of each, with what screening makes of them without control variates."""

    questions: np.ndarray
    """Indices into the population."""
    rollouts: np.ndarray
    """Question × rollout: indices too."""
    outcomes: np.ndarray
    """Question × rollout."""
    pushes: np.ndarray
    """Teacher × objective × question × rollout, for the natural gain."""
    gains: dict[str, np.ndarray]
    """Of each kind of push: question × teacher."""
    reverse_kl: np.ndarray
    """Question × teacher."""


def draw(population: Population, num_questions: int, num_rollouts: int, source: np.random.Generator) -> Draw:
    """Questions with replacement, rollouts of each without."""
    questions = source.integers(len(population.outcomes), size=num_questions)
    rollouts = np.argsort(source.random((num_questions, population.outcomes.shape[1])), axis=1)[:, :num_rollouts]
    return taken(population, questions, rollouts)


def taken(population: Population, questions: np.ndarray, rollouts: np.ndarray) -> Draw:
    """These rollouts of these questions."""
    place = questions[:, None], slice(None), slice(None), rollouts
    natural, euclidean = (own[place].transpose(2, 3, 0, 1) for own in (population.natural_pushes, population.gradient_pushes))
    outcomes = population.outcomes[questions[:, None], rollouts]
    found = screening_gain(outcomes, natural)
    kinds = found[:, 0], screening_gain(outcomes, euclidean[:, 0]), *found[:, 1:].swapaxes(0, 1)
    divergence = population.reverse_kl[questions[:, None], :, rollouts].mean(axis=1)
    gains = {kind: own.T for kind, own in zip(PUSHES, kinds, strict=False)}
    return Draw(questions, rollouts, outcomes, natural, gains, divergence)


def with_controls(population: Population, one: Draw, kind: str, teachers: Sequence[int]) -> np.ndarray:
    """Gains of some teachers, question × teacher, as the pipeline has them by default."""
    number = PUSHES.index(kind)
    pushes = population.gradient_pushes[:, :, 0] if kind == "gain" else population.natural_pushes[:, :, number // 2]
    centred = one.outcomes - one.outcomes.mean(axis=1, keepdims=True)
    question, teacher = one.questions[:, None], np.array(teachers)[:, None, None]
    own = pushes[question, teacher, one.rollouts]
    products = population.products[question, number, teacher, one.rollouts].astype(np.float64)
    return one.gains[kind][:, teachers] - corrections(centred * own, products, np.ones((1, *centred.shape), dtype=bool)).T


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
            if name == PUSHES[0] and errors is not None:
                for null in ("sharpened", "flattened"):
                    k = SHOWN.index(null)
                    distance, least = abs(float(np.mean(errors[:, k]))), float(np.sqrt(np.var(errors[:, k]) / repetitions + known[k] ** 2))
                    right = bool(distance < 4 * least and 0.88 <= share[k] <= 0.92)
                    checks.append(
                        (f"the {null} student gets its exact gain, {budget}: bias within 4 errors, coverage within 88–92 %", right)
                    )
    text = (
        f"{repetitions:,} repetitions a budget; {band(repetitions)} Teachers: {', '.join(SHOWN)}; reverse KL unless said; lowest and highest are "
        "over teachers or pairs. Control variates are on, as they are by default, save where *plain* is said. The error of one question's gain is "
        "moderated by the run's other questions, so that its interval covers on average over questions, all of a draw being counted; the weight of "
        f"the others, {PRIOR_FREEDOM:.0f} degrees of freedom, was chosen by coverage on other questions, teachers and rollouts of this world, and "
        "these are the first that it was tried on since. The last column is the largest "
        "bias, in Monte Carlo errors."
    )
    columns = ["budget", "questions × rollouts", "90 % interval of", "coverage", "lowest", "highest", "bias / its error"]
    return Section("Screening: coverage and bias", text, columns, rows, checks)


Outcome = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""Repetition × quantity: whether the interval held the truth, the error if it has one, and how far the stored rollouts can be from the truth."""


class _Numbers:
    """What is measured in each experiment, and its truth."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._shown = population.index(*SHOWN)
        names = list(dict.fromkeys((*SHOWN, *(name for pair in PAIRS for name in pair))))
        self._compared, self._pairs = population.index(*names), [(names.index(a), names.index(b)) for a, b in PAIRS]
        kinds = population.natural_gain[:, :, 0], population.gain[:, :, 0], population.natural_gain[:, :, 1]
        self._exact = dict(zip(PUSHES, kinds, strict=True))

    def estimates(self, one: Draw) -> dict[str, np.ndarray]:
        """Question × quantity, by what it is."""
        natural = with_controls(self._population, one, PUSHES[0], self._compared)
        others = {kind: with_controls(self._population, one, kind, self._shown) for kind in PUSHES[1:]}
        plain = one.gains[PUSHES[0]][:, self._compared]
        return self._named(natural, others, plain)

    def truths(self) -> dict[str, np.ndarray]:
        """The same of every question of the population."""
        natural = self._exact[PUSHES[0]][:, self._compared]
        return self._named(natural, {kind: self._exact[kind][:, self._shown] for kind in PUSHES[1:]}, natural)

    def _named(self, natural: np.ndarray, others: dict[str, np.ndarray], plain: np.ndarray) -> dict[str, np.ndarray]:
        count = len(self._shown)
        return {
            PUSHES[0]: natural[:, :count],
            **others,
            "paired difference": _pairs(natural, self._pairs),
            "natural gain, plain": plain[:, :count],
            "paired difference, plain": _pairs(plain, self._pairs),
        }

    def one_question(self, one: Draw) -> np.ndarray:
        """Share of the questions whose interval holds their own gain, by teacher."""
        variance = self._population.push_variance[one.questions[:, None], :, one.rollouts].mean(axis=1).T[self._shown]
        found = moderated_errors(one.outcomes, one.pushes[self._shown, 0], variance)
        half = stats.t.ppf(0.5 + LEVEL / 2, found.freedom) * found.error
        gains, exact = one.gains[PUSHES[0]][:, self._shown].T, self._exact[PUSHES[0]][one.questions][:, self._shown].T
        return np.mean(np.abs(gains - exact) <= half, axis=1)


def _repeat(population: Population, budget: str, repetitions: int) -> dict[str, Outcome]:
    source, numbers = generator("truth", "screening", budget), _Numbers(population)
    held: dict[str, list[Any]] = {}
    errors: dict[str, list[np.ndarray]] = {}
    truths = numbers.truths()
    # what the stored rollouts say, all of them; the others of a draw say nothing of how far that is from the truth
    whole = numbers.estimates(taken(population, *_everything(population)))
    known = {name: np.std(whole[name] - truth, axis=0, ddof=1) / np.sqrt(len(truth)) for name, truth in truths.items()}
    joint = f"all {len(PAIRS)} differences together"
    for _ in range(repetitions):
        one = draw(population, *BUDGETS[budget], source)
        values = numbers.estimates(one)
        for name, own in values.items():
            exact = truths[name].mean(axis=0)
            estimates = [clustered_mean(column, LEVEL) for column in own.T]
            held.setdefault(name, []).append([e.low <= t <= e.high for e, t in zip(estimates, exact.tolist(), strict=True)])
            errors.setdefault(name, []).append(own.mean(axis=0) - exact)
        held.setdefault(joint, []).append([_jointly(values["paired difference"], truths["paired difference"].mean(axis=0), source)])
        held.setdefault("natural gain of one question, plain", []).append(numbers.one_question(one))
    return {
        name: (np.array(h), np.array(errors[name]) if name in errors else None, known.get(name, np.zeros(1))) for name, h in held.items()
    }


def _everything(population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Every question with all its stored rollouts."""
    count, size = population.outcomes.shape
    return np.arange(count), np.tile(np.arange(size), (count, 1))


def _pairs(values: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
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
    for num_questions, num_rollouts in ((10, 16), (20, 16), (40, 16), ORDERED, (80, 50)):
        source = generator("truth", "order", num_questions, num_rollouts)
        found: dict[str, list[tuple[float, ...]]] = {"default": [], "plain": []}
        number = repetitions if (num_questions, num_rollouts) == ORDERED else repetitions // 4
        for _ in range(number):
            one = draw(population, num_questions, num_rollouts, source)
            default = with_controls(population, one, PUSHES[0], range(len(names)))
            for way, gains in (("default", default), ("plain", one.gains[PUSHES[0]])):
                found[way].append(_ordered(gains, truth, pairs, far, sign, source))
        for way, results in found.items():
            ordered, decided, undecided, wrong, correlation = np.mean(results, axis=0)
            tokens = num_questions * num_rollouts * (population.world.length + 1)
            cells = [f"{share:.1%}" for share in (ordered, decided, undecided, wrong)]
            rows.append([f"{num_questions} × {num_rollouts}", f"{tokens:,}", way, *cells, fixed(float(correlation), 3)])
            if (num_questions, num_rollouts, way) == (*ORDERED, "default"):
                checks.append(
                    ("40 questions × 50 rollouts order all pairs at least .15 apart in ≥ 95 % of repetitions", bool(ordered >= 0.95))
                )
            checks.append(
                (
                    f"{num_questions} × {num_rollouts}, {way}: a wrong decision on any pair in ≤ 10 % of repetitions (+ 4 errors)",
                    bool(wrong <= 0.1 + 4 * np.sqrt(0.09 / number)),
                )
            )
    exact = ", ".join(
        f"{name} {fixed(value, 3)}" for name, value in sorted(zip(names, truth.tolist(), strict=True), key=lambda item: -item[1])
    )
    text = (
        f"{repetitions:,} repetitions at {ORDERED[0]} × {ORDERED[1]}, {repetitions // 4:,} at the other budgets; exact natural gains (reverse KL): "
        f"{exact}. *In order*: all {int(far.sum())} of {len(pairs)} "
        "pairs at least .15 apart have the right sign. *Decided*: share of these pairs whose simultaneous interval excludes zero on the right "
        "side. *Nearer, undecided*: share of the other pairs left open. *Wrong*: some pair was decided wrongly, ties included. *Default*: with "
        "control variates; *plain*: without."
    )
    columns = [
        "questions × rollouts",
        "tokens",
        "estimate",
        "far pairs in order",
        "far pairs decided",
        "nearer pairs undecided",
        "any wrong decision",
        "rank correlation",
    ]
    return Section("Screening: order of known teachers", text, columns, rows, checks)


def _ordered(
    gains: np.ndarray, truth: np.ndarray, pairs: list[tuple[int, int]], far: np.ndarray, sign: np.ndarray, source: np.random.Generator
) -> tuple[float, ...]:
    """In order, decided, undecided, wrong, rank correlation."""
    values = _pairs(gains, pairs)
    width = simultaneous_quantile(values, LEVEL, source, 2000)
    intervals = [clustered_mean(column, LEVEL, width) for column in values.T]
    low, high = np.array([e.low for e in intervals]), np.array([e.high for e in intervals])
    decision = np.where(low > 0, 1.0, np.where(high < 0, -1.0, 0.0))
    return (
        float(np.all(np.sign(values.mean(axis=0))[far] == sign[far])),
        float(np.mean(decision[far] == sign[far])),
        float(np.mean(decision[~far] == 0)),
        float(np.any((decision != 0) & (decision != sign))),
        float(stats.spearmanr(gains.mean(axis=0), truth).statistic),
    )


def _jointly(values: np.ndarray, truth: np.ndarray, source: np.random.Generator) -> bool:
    width = simultaneous_quantile(values, LEVEL, source, 2000)
    intervals = [clustered_mean(column, LEVEL, width) for column in values.T]
    return all(e.low <= t <= e.high for e, t in zip(intervals, truth.tolist(), strict=True))
