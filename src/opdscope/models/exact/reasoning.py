r"""A Markov world of reasoning chains: critical steps where the chain slips or is repaired, and stylistic tokens that change nothing.

A chain is `length` reasoning tokens and then an answer. It is sound or in error, and only critical tokens change that: a slip brings a sound
chain into error, a repair brings it back. A sound chain mostly ends in the right answer. So a position has two states.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.randomness import generator
from opdscope.models.exact.world import IMPOSSIBLE, RIGHT, WRONG, Logprobs, World

STEP, SLIP, REPAIR = range(WRONG + 1, WRONG + 4)
"""Ids of the critical tokens; the stylistic tokens come after them."""

_NUM_STYLE = 5
_VOCAB_SIZE = REPAIR + 1 + _NUM_STYLE

SOUND, IN_ERROR = 0, 1
"""States of a chain."""


@dataclass(frozen=True)
class ReasoningWorld(World):
    """Chains of reasoning tokens."""

    texts: ClassVar[tuple[str, ...]] = (">1", ">0", "s", "x", "r", "a", "b", "c", "d", "e")

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
        following = np.tile(np.array([SOUND, IN_ERROR])[None, :, None], (self.length + 1, 1, _VOCAB_SIZE))
        critical = self.critical() > 0
        following[critical, SOUND, SLIP] = IN_ERROR
        following[critical, IN_ERROR, REPAIR] = SOUND
        return following

    def student(self, question: int) -> Logprobs:
        """The student's log-probabilities on a question: its slips, repairs and manner of speaking."""
        rng = generator("exact world", self.seed, question)
        slip, repair = rng.beta(2.0, 12.0), rng.beta(2.0, 6.0)
        right = np.array([rng.uniform(0.9, 0.99), rng.uniform(0.01, 0.1)])
        probs = np.full((self.length + 1, 2, _VOCAB_SIZE), IMPOSSIBLE)
        style = rng.dirichlet(np.full(_NUM_STYLE, 1.5), size=self.length + 1)
        probs[:, :, REPAIR + 1 :] = style[:, None, :]
        critical = self.critical() > 0
        count = int(critical.sum())
        # one in ten critical positions passes without a step
        slips = np.clip(slip * rng.uniform(0.5, 1.5, size=count), 0.005, 0.6)
        repairs = np.clip(repair * rng.uniform(0.5, 1.5, size=count), 0.005, 0.8)
        probs[critical] *= 0.1
        probs[critical, SOUND, STEP], probs[critical, SOUND, SLIP] = 0.9 * (1 - slips), 0.9 * slips
        probs[critical, IN_ERROR, STEP], probs[critical, IN_ERROR, REPAIR] = 0.9 * (1 - repairs), 0.9 * repairs
        probs[self.length] = IMPOSSIBLE
        probs[self.length, :, RIGHT], probs[self.length, :, WRONG] = right, 1 - right
        return np.log(probs / probs.sum(axis=-1, keepdims=True))

    def helpful(self, question: int) -> Float[np.ndarray, "position #state token"]:
        """Fewer slips and more repairs at critical positions."""
        direction = np.zeros((self.length + 1, 1, _VOCAB_SIZE))
        direction[..., SLIP], direction[..., REPAIR] = -1.0, 1.0
        return direction * self.critical()[:, None, None]

    def idle(self, question: int) -> Float[np.ndarray, "position #state token"]:
        """Another manner of speaking where nothing is at stake."""
        push = np.zeros((self.length + 1, 1, _VOCAB_SIZE))
        style = generator("stylistic", self.seed, question).normal(scale=1.5, size=(self.length + 1, 1, _NUM_STYLE))
        push[..., REPAIR + 1 :] = style
        return push * (1 - self.critical())[:, None, None]
