"""Questions in order: from those where the teacher's push means little to those where guidance is worth most; harmful ones are held back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy.special import ndtri

from opdscope.advice.tokens import Tokens, screened_sums
from opdscope.advice.weights import question_errors
from opdscope.config import Config
from opdscope.core.randomness import generator
from opdscope.core.shrinkage import Shrunk, order_reliability, shrink

_QUESTIONS_A_BATCH, _MOST_BATCHES = 8, 6
"""Least questions in a batch, and the most batches: an order that is part noise bears no finer ones."""


@dataclass(frozen=True)
class Curriculum:
    """The order of a run's questions."""

    order: Int[np.ndarray, "question"]
    """Numbers of all questions: by rising shrunken gain, an unknown one counting as zero, then those held back, by rising harm."""
    batch: Int[np.ndarray, "question"]
    """Of each question, by number; -1 where it is held back."""
    held_back: Bool[np.ndarray, "question"]
    """Questions on which the push lowers success with a posterior chance of at least the configured confidence."""
    gains: Shrunk
    """Shrunken gain of each question."""
    reliability: float
    """Rank correlation that the order of the gains is expected to have with the true one."""


def make_curriculum(tokens: Tokens, config: Config) -> Curriculum:
    """The order from ordinary rollouts; a question without a gain of its own counts as one without guidance."""
    everything = np.ones(len(tokens.rollouts.length), dtype=bool)
    values = screened_sums(tokens, np.zeros(len(tokens.rollout), dtype=np.int64), 1).gains[:, 0]
    gains = shrink(values, question_errors(tokens, everything))
    mean = np.nan_to_num(gains.mean, nan=0.0)
    held_back = mean + float(ndtri(config.analysis.confidence)) * np.nan_to_num(gains.sd, nan=np.inf) < 0
    order = np.lexsort((np.where(held_back, -mean, mean), held_back))
    taught = int(np.sum(~held_back))
    batches = int(np.clip(taught // _QUESTIONS_A_BATCH, 1, _MOST_BATCHES))
    batch = np.full(len(mean), -1)
    for number, members in enumerate(np.array_split(order[:taught], batches)):
        batch[members] = number
    return Curriculum(order, batch, held_back, gains, order_reliability(gains, generator(config.seed, "advice", "curriculum")))
