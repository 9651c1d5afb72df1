r"""A tree of tokens in which every node has its own student and every leaf its own chance of being right.

Nothing is shared between branches, as in a real model's responses: what a token is worth depends on the whole prefix. A prefix of t letters
is the number that they spell in base four, the first letter in the highest place, and that number is its state; position t has 4^t of them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.randomness import generator
from opdscope.models.exact.world import IMPOSSIBLE, RIGHT, WRONG, Logprobs, World

FIRST_LETTER = WRONG + 1
"""Id of the first letter; the others follow it."""

_NUM_LETTERS = 4
_VOCAB_SIZE = FIRST_LETTER + _NUM_LETTERS

_CONCENTRATIONS = (0.03, 3.0)  # a Dirichlet draw at the lower end is nearly deterministic, at the upper end open
_LEAST_PROB = 1e-3  # of a letter: a rarer one would be settled by no affordable number of rollouts
_SHARPNESS = 4.0  # nats per unit of advantage; the tilts of `good` reach 6 nats at most
_LARGEST_PUSH = 2.0  # nats


@dataclass(frozen=True)
class TreeWorld(World):
    """A tree of letters; each of its paths ends in an answer."""

    texts: ClassVar[tuple[str, ...]] = (">1", ">0", "a", "b", "c", "d")

    depth: int = 4
    """Letters before the answer."""
    seed: int = 0
    """Of all questions and teachers."""

    def next_states(self) -> Int[np.ndarray, "position state token"]:
        """The state after each token.

        Tables are as wide as the last position. What they hold for states that a position does not have is reached with probability zero, so
        it is enough that the numbers stay in range; the same is true of answers out of place.
        """
        num_states = _NUM_LETTERS**self.depth
        letters = np.clip(np.arange(_VOCAB_SIZE) - FIRST_LETTER, 0, None)
        children = (np.arange(num_states)[:, None] * _NUM_LETTERS + letters) % num_states
        return np.tile(children, (self.depth + 1, 1, 1))

    def student(self, question: int) -> Logprobs:
        """The student's log-probabilities on a question: at each node a Dirichlet draw of its own, at each leaf a Beta draw."""
        rng = generator("tree world", self.seed, question)
        num_states = _NUM_LETTERS**self.depth
        concentrations = np.exp(rng.uniform(*np.log(_CONCENTRATIONS), size=(self.depth, num_states, 1)))
        weights = rng.gamma(concentrations, size=(self.depth, num_states, _NUM_LETTERS)) + np.finfo(np.float64).tiny
        letters = weights / weights.sum(axis=-1, keepdims=True)
        right = np.clip(rng.beta(0.4, 0.4, size=num_states), _LEAST_PROB, 1 - _LEAST_PROB)
        probs = np.full((self.depth + 1, num_states, _VOCAB_SIZE), IMPOSSIBLE)
        probs[: self.depth, :, FIRST_LETTER:] = _LEAST_PROB + (1 - _NUM_LETTERS * _LEAST_PROB) * letters
        probs[self.depth, :, RIGHT], probs[self.depth, :, WRONG] = right, 1 - right
        return np.log(probs / probs.sum(axis=-1, keepdims=True))

    def helpful(self, question: int) -> Float[np.ndarray, "position #state token"]:
        r"""The advantage of each token, :math:`S_j - V`: a tilt of c times it gains :math:`c \operatorname{Var}_p(S)` by reverse KL."""
        return _SHARPNESS * _centred(np.exp(self.student(question)), self.success(question))

    def idle(self, question: int) -> Float[np.ndarray, "position #state token"]:
        r"""Noise made orthogonal to success under the student at each node, :math:`\operatorname{Cov}_p(S, f) = 0`.

        So it gains nothing by reverse KL, whose signal it is. The signal of forward KL bends it, and there it gains or loses a little.
        """
        student = np.exp(self.student(question))
        letters = np.s_[: self.depth, :, FIRST_LETTER:]  # between two answers no direction but success itself is left
        probs, advantage = student[letters], _centred(student, self.success(question))[letters]
        noise = _centred(probs, generator("stylistic", self.seed, question).normal(size=probs.shape))
        slope = np.sum(probs * advantage * noise, axis=-1, keepdims=True) / np.sum(probs * advantage**2, axis=-1, keepdims=True)
        orthogonal = noise - slope * advantage
        push = np.zeros_like(student)
        # of one size everywhere: where success hardly varies the slope is steep, and an unbounded tilt would bury the student's choice
        push[letters] = orthogonal * (_LARGEST_PUSH / np.max(np.abs(orthogonal), axis=-1, keepdims=True))
        return push


def _centred(
    probs: Float[np.ndarray, "position state token"], values: Float[np.ndarray, "position state token"]
) -> Float[np.ndarray, "position state token"]:
    """Values less their mean at each node."""
    return values - np.sum(probs * values, axis=-1, keepdims=True)
