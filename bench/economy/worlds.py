"""Exact worlds as arrays: rollouts of many questions at once, with what screening sums for each teacher."""

from dataclasses import dataclass

import numpy as np

from opdscope.core.controls import zero_mean_products
from opdscope.core.divergences import reverse_kl_signal
from opdscope.core.randomness import generator
from opdscope.models.exact import ReasoningWorld, TreeWorld, World
from opdscope.summary.teachers import QuestionGains

WORLDS: dict[str, World] = {"chains": ReasoningWorld(), "tree": TreeWorld()}
TASKS = {"chains": {"kind": "exact"}, "tree": {"kind": "exact", "world": "tree"}}
REAL = ("good", "fair", "weak", "harmful", "stylistic", "random")
NULLS = ("sharpened", "flattened")
NAMES = REAL + NULLS
OBJECTIVE = "reverse_kl"


@dataclass(frozen=True)
class Question:
    """One question's tables: position × state × token, teachers in the order of `NAMES`."""

    student: np.ndarray
    success: np.ndarray
    occupancy: np.ndarray
    signal: np.ndarray
    """Centred signals, teacher first."""
    forward_signal: np.ndarray
    """The same for forward KL, whose natural gain is the teacher advantage."""
    reverse_kl: np.ndarray
    """Teacher × position × state."""

    @property
    def cumulative(self) -> np.ndarray:
        """Of the student's probabilities."""
        return np.cumsum(np.exp(self.student), axis=-1)

    @property
    def gains(self) -> np.ndarray:
        """Exact natural gain of each teacher, summed over a response."""
        weights = self.occupancy[..., None] * np.exp(self.student) * self.success
        return np.einsum("psk,tpsk->t", weights, self.signal)


def question(world: World, index: int) -> Question:
    """The tables of a question."""
    student = world.student(index)
    probs = np.exp(student)
    signals, forward, divergences = [], [], []
    for name in NAMES:
        teacher = world.teacher(name, index)
        signal = reverse_kl_signal(student, teacher)
        mean = np.sum(probs * signal, axis=-1, keepdims=True)
        signals.append(signal - mean)
        divergences.append(-mean[..., 0])
        ratio = np.exp(teacher - student)
        forward.append(ratio - np.sum(probs * ratio, axis=-1, keepdims=True))
    tables = np.array(signals), np.array(forward), np.array(divergences)
    return Question(student, world.success(index), world.occupancy(index), *tables)


@dataclass(frozen=True)
class Rollouts:
    """Ordinary rollouts of one question."""

    outcomes: np.ndarray
    """1 for right, 0 for wrong."""
    tokens: np.ndarray
    """Rollout × position."""
    states: np.ndarray
    """Rollout × position."""

    def pushes(self, own: Question) -> np.ndarray:
        """Centred signal at each token: teacher × rollout × position."""
        return own.signal[:, np.arange(self.tokens.shape[1]), self.states, self.tokens]

    def forward_pushes(self, own: Question) -> np.ndarray:
        """The same for forward KL."""
        return own.forward_signal[:, np.arange(self.tokens.shape[1]), self.states, self.tokens]

    def divergence(self, own: Question) -> np.ndarray:
        """KL of each response: teacher × rollout."""
        return own.reverse_kl[:, np.arange(self.tokens.shape[1]), self.states].sum(axis=-1)


def roll_out(world: World, own: Question, numbers: np.ndarray, position: int = 0, states: np.ndarray | None = None) -> Rollouts:
    """Rollouts by inversion.

    Args:
        world: The world.
        own: The question.
        numbers: Uniforms, rollout × positions that are left.
        position: Where they begin.
        states: State of each there.
    """
    cumulative, following = own.cumulative, world.next_states()
    current = np.zeros(len(numbers), dtype=np.int64) if states is None else states
    drawn, visited = np.empty(numbers.shape, dtype=np.int64), np.empty(numbers.shape, dtype=np.int64)
    for k in range(numbers.shape[1]):
        rows = cumulative[position + k, current]
        visited[:, k] = current
        drawn[:, k] = np.sum(rows <= numbers[:, k, None] * rows[:, -1:], axis=-1)
        current = following[position + k, current, drawn[:, k]]
    return Rollouts((drawn[:, -1] == 0).astype(np.float64), drawn, visited)


@dataclass(frozen=True)
class Population:
    """Questions with stored rollouts; experiments draw from it."""

    outcomes: np.ndarray
    """Question × rollout."""
    pushes: np.ndarray
    """Question × teacher × rollout, summed over the response."""
    reverse_kl: np.ndarray
    """Question × teacher × rollout."""
    exact: np.ndarray
    """Question × teacher: natural gains."""
    products: np.ndarray
    """Question × real teacher that informs × real teacher × rollout: products of their signals at different positions, mean zero."""
    forward_pushes: np.ndarray
    """Question × real teacher × rollout: `pushes` for forward KL."""
    forward_products: np.ndarray
    """`products` with the forward KL of the judged teacher."""
    length: int
    """Tokens of a response."""

    def screening(self, chosen: np.ndarray, rollouts: np.ndarray, start: int, stop: int) -> dict[tuple[str, str], QuestionGains]:
        """As the pipeline would have it; `rollouts` orders each chosen question's rollouts."""
        index = rollouts[:, start:stop]
        right = np.take_along_axis(self.outcomes[chosen], index, axis=1)
        push = np.take_along_axis(self.pushes[chosen], index[:, None], axis=2)
        divergence = np.take_along_axis(self.reverse_kl[chosen], index[:, None], axis=2).mean(axis=2)
        centred = right - right.mean(axis=1, keepdims=True)  # the leave-one-out baseline is the covariance with divisor n - 1
        gains = np.sum(centred[:, None] * push, axis=2) / (stop - start - 1)
        return {(name, OBJECTIVE): QuestionGains(gains[:, t], gains[:, t], divergence[:, t]) for t, name in enumerate(NAMES)}

    def truth(self) -> dict[tuple[str, str], QuestionGains]:
        """Exact gains of every question."""
        divergence = self.reverse_kl.mean(axis=2)
        return {(name, OBJECTIVE): QuestionGains(self.exact[:, t], self.exact[:, t], divergence[:, t]) for t, name in enumerate(NAMES)}


def population(world: World, num_questions: int, num_rollouts: int) -> Population:
    """Questions 0, 1, … of a world with rollouts."""
    parts: list[tuple[np.ndarray, ...]] = []
    length = 0
    for index in range(num_questions):
        own = question(world, index)
        length = len(own.student)
        drawn = roll_out(world, own, generator("economy", index).random((num_rollouts, length)))
        pushes = drawn.pushes(own)
        sums, real = pushes.sum(axis=-1), pushes[: len(REAL)]
        judged = drawn.forward_pushes(own)[: len(REAL)]
        products, forward = (
            np.array([zero_mean_products(real.swapaxes(0, 1), push).T for push in pushes]).swapaxes(0, 1).astype(np.float32)
            for pushes in (real, judged)
        )
        parts.append((drawn.outcomes, sums, drawn.divergence(own), own.gains, products, judged.sum(axis=-1), forward))
    columns = [np.array(column) for column in zip(*parts, strict=True)]
    known = ~np.isnan(columns[3]).any(axis=1)  # in the tree a node without any range of success leaves one teacher of a question undefined
    columns = [column[known] for column in columns]
    return Population(*columns, length)
