"""Cosines that take one of two values: how often the intervals of a posterior cover that knows everything but the outcomes to come.

Where all tokens of a node but one lead to the same success, a teacher's cosine does not depend on how large the difference is, only on which way
it goes: it is c or -c. Its posterior is two chances that sum to one, and the shortest interval that holds 90 % is either one point or reaches from
one to the other.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.success import StratumOutcomes

_LEAST_PROB = 1e-9
"""Of a stratum that counts."""

_SAME = 1e-9
"""Successes no further apart are one."""


@dataclass(frozen=True)
class OddNodes:
    """Nodes at which one candidate succeeds more or less often than all other strata, which agree."""

    index: Int[np.ndarray, "node"]
    """Which of the nodes."""
    stratum: Int[np.ndarray, "node"]
    """The odd one."""
    common: Float[np.ndarray, "node"]
    """Success of the others."""
    own: Float[np.ndarray, "node"]
    """Success of the odd one."""


def find_odd(
    success: Float[np.ndarray, "node stratum"], probs: Float[np.ndarray, "node stratum"], is_tail: Bool[np.ndarray, "node stratum"]
) -> OddNodes:
    """Nodes of three strata or more at which exactly one differs, and that one is no tail: within a tail tokens may differ.

    Args:
        success: Exact success of each stratum.
        probs: The student's; strata without any do not count.
        is_tail: Which stratum is the tail.
    """
    live = probs > _LEAST_PROB
    common = np.nanmedian(np.where(live, success, np.nan), axis=1)
    differs = live & (np.abs(success - common[:, None]) > _SAME)
    stratum = np.argmax(differs, axis=1)
    rows = np.arange(len(probs))
    index = np.flatnonzero((differs.sum(axis=1) == 1) & (live.sum(axis=1) >= 3) & ~is_tail[rows, stratum])
    return OddNodes(index, stratum[index], common[index], success[index, stratum[index]])


def chance_of_more(odd: OddNodes, outcomes: StratumOutcomes, questions: Int[np.ndarray, "node"]) -> Float[np.ndarray, "node"]:
    r"""Posterior chance that the odd one succeeds more often than the others, given the outcomes of its node.

    Args:
        odd: The nodes.
        outcomes: Of all nodes, `node × stratum`.
        questions: Question of each node.

    Returns:
        Chances in [0, 1].

    Notes:
        The prior is the true distribution: the pairs of success at such nodes of all other questions, each as likely as any other. It is
        told which stratum is the odd one. :math:`p(S, S' \mid c) \propto S^{c} (1 - S)^{n - c} S'^{c'} (1 - S')^{n' - c'}`, with the
        counts of all other strata together, and those of the odd one.
    """
    rows = np.arange(len(odd.index))
    correct, count = outcomes.num_correct[odd.index], outcomes.num_verified[odd.index]
    own_right, own_count = correct[rows, odd.stratum], count[rows, odd.stratum]
    right, total = correct.sum(axis=1) - own_right, count.sum(axis=1) - own_count
    own_questions, more = questions[odd.index], odd.own > odd.common
    columns = np.log(np.stack([odd.common, 1.0 - odd.common, odd.own, 1.0 - odd.own]))
    counts = np.stack([right, total - right, own_right, own_count - own_right], axis=1)
    result = np.empty(len(rows))
    for question in np.unique(own_questions):
        here, others = own_questions == question, own_questions != question
        logs = counts[here] @ columns[:, others]
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        result[here] = (weights @ more[others]) / weights.sum(axis=1)
    return result


def held_and_open(
    chance: Float[np.ndarray, "node"], more: Bool[np.ndarray, "node"], confidence: float
) -> tuple[Bool[np.ndarray, "node"], Bool[np.ndarray, "node"]]:
    """Whether the shortest interval that holds so much of a posterior of two values holds the true one, and whether it reaches to both.

    Args:
        chance: That the odd stratum succeeds more often.
        more: Whether it does.
        confidence: Level of the interval.
    """
    reaches = np.maximum(chance, 1.0 - chance) < confidence
    return reaches | ((chance > 0.5) == more), reaches
