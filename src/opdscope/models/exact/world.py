r"""What every exact world has in common: dynamic programming over a small set of states a position, and teachers of known quality.

A response is a fixed number of reasoning tokens and then an answer, `RIGHT` or `WRONG`. The next distribution depends on the position and on
a state that the tokens so far lead to, so success, occupancy and gains follow from sums over states: no sampling, no bound.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.alignment import natural_gain
from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient, ideal_gradient
from opdscope.core.nulls import tempered
from opdscope.core.randomness import generator

RIGHT, WRONG = range(2)
"""The answers: in every world the first two tokens, and the ones that end a response."""

START = 0
"""State before the first token."""

IMPOSSIBLE = 1e-30
"""Probability of a token that is out of place: never drawn, yet finite in logarithms; equal for student and teachers, so that it enters no
gain."""

Logprobs = Float[np.ndarray, "position state token"]


class World(ABC):
    """The rules of a world; questions are its random instances. The last position of every table is the answer's."""

    texts: ClassVar[tuple[str, ...]]
    """Text of each token; those of `RIGHT` and `WRONG` come first."""
    eos_token_ids: ClassVar[tuple[int, ...]] = (RIGHT, WRONG)
    """Tokens that end a response."""
    seed: int
    """Of all questions and teachers."""

    @abstractmethod
    def next_states(self) -> Int[np.ndarray, "position state token"]:
        """The state after each token."""

    @abstractmethod
    def student(self, question: int) -> Logprobs:
        """The student's log-probabilities on a question."""

    @abstractmethod
    def helpful(self, question: int) -> Float[np.ndarray, "position #state token"]:
        """A direction on the student's log-probabilities that raises its success; teachers of known quality follow it near or far."""

    @abstractmethod
    def idle(self, question: int) -> Float[np.ndarray, "position #state token"]:
        """A push on the student's log-probabilities that leads far away and gains nothing by reverse KL, at any node."""

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
        result[-1] = np.arange(student.shape[-1]) == RIGHT
        for position in range(len(student) - 2, -1, -1):
            values = np.sum(student[position + 1] * result[position + 1], axis=-1)
            result[position] = values[following[position]]
        return result

    def occupancy(self, question: int) -> Float[np.ndarray, "position state"]:
        """Chance that the student is in each state at each position."""
        student, following = np.exp(self.student(question)), self.next_states()
        result = np.zeros(student.shape[:2])
        result[0, START] = 1.0
        for position in range(len(student) - 1):
            moved = result[position][:, None] * student[position]
            result[position + 1] = np.bincount(following[position].ravel(), weights=moved.ravel(), minlength=student.shape[1])
        return result

    def success_rate(self, question: int) -> float:
        """The student's success on a question."""
        return float(np.sum(np.exp(self.student(question)[0, START]) * self.success(question)[0, START]))

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


def normalised(logits: Logprobs) -> Logprobs:
    """Log-probabilities of logits."""
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def _tilted(strength: float) -> Callable[[World, int], Logprobs]:
    """The student moved along the helpful direction, or against it."""
    return lambda world, question: normalised(world.student(question) + strength * world.helpful(question))


def _random(world: World, question: int) -> Logprobs:
    """Noise on every log-probability, drawn anew at every node: knows nothing, pushes hard."""
    student = world.student(question)
    return normalised(student + generator("random", world.seed, question).normal(scale=0.5, size=student.shape))


def _at_temperature(temperature: float) -> Callable[[World, int], Logprobs]:
    return lambda world, question: tempered(world.student(question), temperature)


TEACHERS: Mapping[str, Callable[[World, int], Logprobs]] = MappingProxyType(
    {
        "itself": lambda world, question: world.student(question),
        "good": _tilted(1.5),
        "fair": _tilted(0.8),
        "weak": _tilted(0.3),
        "harmful": _tilted(-0.6),
        "stylistic": lambda world, question: normalised(world.student(question) + world.idle(question)),
        "random": _random,
        "sharpened": _at_temperature(0.8),
        "flattened": _at_temperature(1.25),
    }
)
"""Teachers of known quality by name, in every world; `itself` is the student."""


@lru_cache(maxsize=4096)
def tables(world: World, name: str, question: int) -> Logprobs:
    """A model's log-probabilities on a question, made once; not to be written to."""
    found = world.teacher(name, question)
    found.flags.writeable = False
    return found
