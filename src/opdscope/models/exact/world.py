r"""A Markov world of reasoning chains: critical steps where the chain slips or is repaired, and stylistic tokens that change nothing.

A chain is `length` reasoning tokens and then an answer. It is sound or in error, and only critical tokens change that: a slip brings a sound
chain into error, a repair brings it back. A sound chain mostly ends in the right answer. Because the next distribution depends on the
position and on soundness alone, success, occupancy and gains follow from sums over two states a position: no sampling, no bound.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.alignment import natural_gain
from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient, ideal_gradient
from opdscope.core.nulls import tempered
from opdscope.core.randomness import generator

RIGHT, WRONG, STEP, SLIP, REPAIR = range(5)
"""Token ids; the stylistic tokens come after them."""

NUM_STYLE = 5
VOCAB_SIZE = REPAIR + 1 + NUM_STYLE
SOUND, IN_ERROR = 0, 1
"""States of a chain."""

_IMPOSSIBLE = 1e-30  # never drawn, yet finite in logarithms; equal for student and teachers, so that it enters no gain

Logprobs = Float[np.ndarray, "position state token"]


@dataclass(frozen=True)
class ReasoningWorld:
    """The rules of the world; questions are its random instances."""

    length: int = 60
    """Reasoning tokens before the answer."""
    spacing: int = 6
    """Every so many positions there is a critical one."""
    seed: int = 0
    """Of all questions and teachers."""

    def critical(self) -> Float[np.ndarray, "position"]:
        """1 at critical positions, 0 at stylistic ones and at the answer."""
        positions = np.arange(self.length + 1)
        return ((positions % self.spacing == self.spacing - 1) & (positions < self.length)).astype(np.float64)

    def next_states(self) -> Int[np.ndarray, "position state token"]:
        """The state after each token."""
        following = np.tile(np.array([SOUND, IN_ERROR])[None, :, None], (self.length + 1, 1, VOCAB_SIZE))
        critical = self.critical() > 0
        following[critical, SOUND, SLIP] = IN_ERROR
        following[critical, IN_ERROR, REPAIR] = SOUND
        return following

    def student(self, question: int) -> Logprobs:
        """The student's log-probabilities on a question: its slips, repairs and manner of speaking."""
        rng = generator("exact world", self.seed, question)
        slip, repair = rng.beta(2.0, 12.0), rng.beta(2.0, 6.0)
        right = np.array([rng.uniform(0.9, 0.99), rng.uniform(0.01, 0.1)])
        probs = np.full((self.length + 1, 2, VOCAB_SIZE), _IMPOSSIBLE)
        style = rng.dirichlet(np.full(NUM_STYLE, 1.5), size=self.length + 1)
        probs[:, :, REPAIR + 1 :] = style[:, None, :]
        critical = self.critical() > 0
        count = int(critical.sum())
        # one in ten critical positions passes without a step
        slips = np.clip(slip * rng.uniform(0.5, 1.5, size=count), 0.005, 0.6)
        repairs = np.clip(repair * rng.uniform(0.5, 1.5, size=count), 0.005, 0.8)
        probs[critical] *= 0.1
        probs[critical, SOUND, STEP], probs[critical, SOUND, SLIP] = 0.9 * (1 - slips), 0.9 * slips
        probs[critical, IN_ERROR, STEP], probs[critical, IN_ERROR, REPAIR] = 0.9 * (1 - repairs), 0.9 * repairs
        probs[self.length] = _IMPOSSIBLE
        probs[self.length, :, RIGHT], probs[self.length, :, WRONG] = right, 1 - right
        return np.log(probs / probs.sum(axis=-1, keepdims=True))

    def teacher(self, name: str, question: int) -> Logprobs:
        """A teacher's log-probabilities.

        Args:
            name: One of :data:`TEACHERS`.
            question: Index of the question.
        """
        return TEACHERS[name](self, question)

    def success(self, question: int) -> Float[np.ndarray, "position state token"]:
        """Success of each token when the student finishes."""
        student, following = np.exp(self.student(question)), self.next_states()
        result = np.empty_like(student)
        result[self.length] = np.arange(VOCAB_SIZE) == RIGHT
        for position in range(self.length - 1, -1, -1):
            values = np.sum(student[position + 1] * result[position + 1], axis=-1)
            result[position] = values[following[position]]
        return result

    def occupancy(self, question: int) -> Float[np.ndarray, "position state"]:
        """Chance that the student's chain is in each state at each position."""
        student, following = np.exp(self.student(question)), self.next_states()
        result = np.zeros((self.length + 1, 2))
        result[0, SOUND] = 1.0
        for position in range(self.length):
            moved = result[position][:, None] * student[position]
            result[position + 1] = [np.sum(moved[following[position] == state]) for state in (SOUND, IN_ERROR)]
        return result

    def success_rate(self, question: int) -> float:
        """The student's success on a question."""
        return float(np.sum(np.exp(self.student(question)[0, SOUND]) * self.success(question)[0, SOUND]))

    def node_gains(self, question: int, teacher: str, objective: str) -> Float[np.ndarray, "position state"]:
        """Natural gain at each node, :math:`Cov_p(S, f)`."""
        student, other = self.student(question), self.teacher(teacher, question)
        return natural_gain(student, signal_of(objective)(student, other), self.success(question))

    def natural_gain(self, question: int, teacher: str, objective: str) -> float:
        """Natural gain summed over the nodes of a response, in expectation over the student's responses: what screening estimates."""
        return float(np.sum(self.occupancy(question) * self.node_gains(question, teacher, objective)))

    def gain(self, question: int, teacher: str, objective: str) -> float:
        """Euclidean gain, :math:`⟨g^*, d⟩`, summed likewise."""
        student, other = self.student(question), self.teacher(teacher, question)
        ideal = ideal_gradient(np.exp(student), self.success(question))
        products = np.sum(ideal * distillation_gradient(student, other, objective), axis=-1)
        return float(np.sum(self.occupancy(question) * products))


def _tilted(strength: float, tokens: Mapping[int, float]) -> Callable[[ReasoningWorld, int], Logprobs]:
    """The student with some tokens' log-probabilities moved at critical positions."""

    def logprobs(world: ReasoningWorld, question: int) -> Logprobs:
        push = np.zeros(VOCAB_SIZE)
        for token, sign in tokens.items():
            push[token] = sign * strength
        return _normalised(world.student(question) + push * world.critical()[:, None, None])

    return logprobs


def _stylistic(world: ReasoningWorld, question: int) -> Logprobs:
    """Another manner of speaking where nothing is at stake: far from the student, and of no gain at all."""
    push = np.zeros((world.length + 1, 1, VOCAB_SIZE))
    push[:, :, REPAIR + 1 :] = generator("stylistic", world.seed, question).normal(scale=1.5, size=(world.length + 1, 1, NUM_STYLE))
    return _normalised(world.student(question) + push * (1 - world.critical())[:, None, None])


def _random(world: ReasoningWorld, question: int) -> Logprobs:
    """Noise on every log-probability, drawn anew at every node: knows nothing, pushes hard."""
    noise = generator("random", world.seed, question).normal(scale=0.5, size=(world.length + 1, 2, VOCAB_SIZE))
    return _normalised(world.student(question) + noise)


def _at_temperature(temperature: float) -> Callable[[ReasoningWorld, int], Logprobs]:
    return lambda world, question: tempered(world.student(question), temperature)


def _normalised(logits: Logprobs) -> Logprobs:
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


_KNOWS: Mapping[int, float] = {SLIP: -1.0, REPAIR: 1.0}

TEACHERS: Mapping[str, Callable[[ReasoningWorld, int], Logprobs]] = MappingProxyType(
    {
        "itself": lambda world, question: world.student(question),
        "good": _tilted(1.5, _KNOWS),
        "fair": _tilted(0.8, _KNOWS),
        "weak": _tilted(0.3, _KNOWS),
        "harmful": _tilted(0.6, {SLIP: 1.0, REPAIR: -1.0}),
        "stylistic": _stylistic,
        "random": _random,
        "sharpened": _at_temperature(0.8),
        "flattened": _at_temperature(1.25),
    }
)
"""Teachers of known quality by name; `itself` is the student."""


@lru_cache(maxsize=4096)
def tables(world: ReasoningWorld, name: str, question: int) -> Logprobs:
    """A model's log-probabilities on a question, made once; not to be written to."""
    found = world.teacher(name, question)
    found.flags.writeable = False
    return found
