"""A population of questions whose truth is known, and stored rollouts of it from which experiments are drawn.

An experiment draws questions with replacement and rollouts without, so that the population's mean, which dynamic programming gives, is what every
interval has to hold. All signals and gradients come from the functions that the pipeline itself calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opdscope.config import same_entropy_name
from opdscope.core.controls import zero_mean_products
from opdscope.core.nulls import matched_strength, tempered
from opdscope.core.randomness import generator
from opdscope.core.screening import StudentRows, compare_rows, reduce_rows
from opdscope.models.exact import TEACHERS, ReasoningWorld

OBJECTIVES = ("reverse_kl", "forward_kl")
STRONGER = {"sharper": 0.6, "flatter": 1.6}
"""Teachers that are the student at another temperature than the nulls of the configuration, 0.8 and 1.25."""

MATCHED = ("stylistic", "random", "sharper", "flatter", "good")
"""Teachers whose null at their own entropy is in the population."""

INFORMING = ("good", "fair", "weak", "harmful", "stylistic", "random")
"""Teachers whose log-ratios are control variates: in a run these are the real ones, not the nulls."""

PUSHES = ("natural gain", "gain", "natural gain, forward KL")
"""Pushes that are screened with control variates."""

NAMES = (*TEACHERS, *STRONGER, *map(same_entropy_name, MATCHED))


@dataclass(frozen=True)
class Population:
    """Questions with their truth and with rollouts; axes are question, teacher (as in `names`), objective, rollout."""

    world: ReasoningWorld
    names: tuple[str, ...]
    success_rate: np.ndarray
    natural_gain: np.ndarray
    gain: np.ndarray
    outcomes: np.ndarray
    natural_pushes: np.ndarray
    gradient_pushes: np.ndarray
    reverse_kl: np.ndarray
    push_variance: np.ndarray
    """Variance of the natural push under the student, summed over each response: question × teacher × rollout, first objective."""
    products: np.ndarray
    """Products of a teacher's pushes with those of the teachers that inform, at different positions: question × `PUSHES` × teacher × rollout ×
    informing teacher."""

    def index(self, *names: str) -> list[int]:
        """Places of teachers."""
        return [self.names.index(name) for name in names]

    def only(self, *names: str) -> "Population":
        """These teachers and the first objective: draws are cheaper."""
        own = self.index(*names)
        return replace(
            self,
            names=names,
            natural_gain=self.natural_gain[:, own, :1],
            gain=self.gain[:, own, :1],
            natural_pushes=self.natural_pushes[:, own, :1],
            gradient_pushes=self.gradient_pushes[:, own, :1],
            reverse_kl=self.reverse_kl[:, own],
            push_variance=self.push_variance[:, own],
            products=self.products[:, :1, own],
        )


def teacher_logprobs(world: ReasoningWorld, question: int, temperatures: dict[str, float]) -> dict[str, np.ndarray]:
    """Every teacher of the population on a question, position × state × token."""
    student = world.student(question)
    found = {name: world.teacher(name, question) for name in TEACHERS}
    return found | {name: tempered(student, temperature) for name, temperature in temperatures.items()}


def make_population(
    world: ReasoningWorld, num_questions: int, num_rollouts: int, seed: int = 0, informing: Sequence[str] = INFORMING
) -> Population:
    """Truth by dynamic programming, and rollouts with the pushes that screening sums, for every teacher and objective."""
    temperatures = {**STRONGER, **_matched_temperatures(world, min(num_questions, 200))}
    shape = (num_questions, len(NAMES), len(OBJECTIVES))
    natural_gain, gain = np.empty(shape), np.empty(shape)
    outcomes = np.empty((num_questions, num_rollouts))
    natural, euclidean = np.empty((*shape, num_rollouts)), np.empty((*shape, num_rollouts))
    divergence, spread = np.empty((2, num_questions, len(NAMES), num_rollouts))
    products = np.empty((num_questions, len(PUSHES), len(NAMES), num_rollouts, len(informing)), dtype=np.float32)
    rates = np.empty(num_questions)
    for question in range(num_questions):
        tables = _reduced(world, question, teacher_logprobs(world, question, temperatures))
        occupancy = world.occupancy(question)
        success = world.success(question)
        probs = np.exp(world.student(question))
        advantage = success - np.sum(probs * success, axis=-1, keepdims=True)
        weights = occupancy[..., None] * probs * advantage
        # Σ occupancy · Cov_p(S, f), with f centred or not: the sum over nodes of the natural gain; likewise with d for the gain
        natural_gain[question] = np.einsum("psk,topsk->to", weights, tables.signal)
        gain[question] = np.einsum("psk,topsk->to", weights, tables.gradient)
        rates[question] = world.success_rate(question)
        drawn = _roll_out(world, question, num_rollouts, generator("population", seed, question), tables, informing)
        outcomes[question], natural[question], euclidean[question], divergence[question], spread[question], products[question] = drawn
    return Population(world, NAMES, rates, natural_gain, gain, outcomes, natural, euclidean, divergence, spread, products)


@dataclass(frozen=True)
class _Tables:
    """What every token at every node is worth to screening: teacher × objective × position × state × token."""

    signal: np.ndarray
    gradient: np.ndarray
    reverse_kl: np.ndarray
    push_variance: np.ndarray
    """Of the first objective; like `reverse_kl` without a token."""


def _reduced(world: ReasoningWorld, question: int, teachers: dict[str, np.ndarray]) -> _Tables:
    student = world.student(question)
    positions, states, vocab = student.shape
    rows = student.reshape(-1, vocab)
    # every token of every row is taken once
    repeated = StudentRows.of(np.repeat(rows, vocab, axis=0))
    taken = np.tile(np.arange(vocab), len(rows))
    signal = np.empty((len(NAMES), len(OBJECTIVES), positions, states, vocab))
    gradient, (divergence, spread) = np.empty_like(signal), np.empty((2, len(NAMES), positions, states))
    for t, name in enumerate(NAMES):
        others = teachers[name].reshape(-1, vocab)
        divergence[t] = compare_rows(StudentRows.of(rows), others).reverse_kl.reshape(positions, states)
        for o, objective in enumerate(OBJECTIVES):
            reduced = reduce_rows(repeated, np.repeat(others, vocab, axis=0), taken, objective)
            signal[t, o] = reduced.taken_signal.reshape(positions, states, vocab)
            gradient[t, o] = reduced.taken_gradient.reshape(positions, states, vocab)
            if o == 0:
                spread[t] = reduced.signal_variance.reshape(positions, states, vocab)[..., 0]
    return _Tables(signal, gradient, divergence, spread)


def _roll_out(
    world: ReasoningWorld, question: int, count: int, source: np.random.Generator, tables: _Tables, informing: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes, and per teacher and objective the sums over each response."""
    cumulative = np.cumsum(np.exp(world.student(question)), axis=-1)
    following = world.next_states()
    states, tokens = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    natural, euclidean = np.zeros((*tables.signal.shape[:2], count)), np.zeros((*tables.signal.shape[:2], count))
    divergence, spread = np.zeros((2, len(NAMES), count))
    taken: list[np.ndarray] = []
    for position in range(len(cumulative)):
        rows = cumulative[position, states]
        tokens = np.sum(rows <= source.random(count)[:, None] * rows[:, -1:], axis=-1)
        signal, gradient = (table[:, :, position, states, tokens] for table in (tables.signal, tables.gradient))
        natural += signal
        euclidean += gradient
        if informing:
            taken.append(np.stack([signal[:, 0], gradient[:, 0], signal[:, 1]]))
        divergence += tables.reverse_kl[:, position, states]
        spread += tables.push_variance[:, position, states]
        states = following[position, states, tokens]
    products = np.empty((len(PUSHES), len(NAMES), count, 0))
    if informing:
        pushes = np.stack(taken, axis=-1)
        # the signal of the first objective, reverse KL, is the log-ratio
        controls = pushes[0, [NAMES.index(name) for name in informing]].swapaxes(0, 1)
        products = np.array([[zero_mean_products(controls, own) for own in push] for push in pushes])
    return (tokens == 0).astype(np.float64), natural, euclidean, divergence, spread, products


def _matched_temperatures(world: ReasoningWorld, num_questions: int) -> dict[str, float]:
    """Temperature of each matched null: the student's mean entropy there is the teacher's, over the nodes of the student's own responses."""
    grid = np.geomspace(0.1, 10.0, 65)
    curve, wanted = np.zeros(len(grid)), np.zeros(len(MATCHED))
    for question in range(num_questions):
        student, weights = world.student(question), world.occupancy(question)
        curve += [_mean_entropy(tempered(student, temperature), weights) for temperature in grid.tolist()]
        teachers = teacher_logprobs(world, question, STRONGER)
        wanted += [_mean_entropy(teachers[name], weights) for name in MATCHED]
    return {same_entropy_name(name): matched_strength(grid, curve, value) for name, value in zip(MATCHED, wanted.tolist(), strict=True)}


def _mean_entropy(logprobs: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sum(weights * -np.sum(np.exp(logprobs) * logprobs, axis=-1)))
