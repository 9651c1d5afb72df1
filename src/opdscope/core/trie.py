"""Visits in the tree of all responses to one question: how often each child of each node of a path was taken, and how often that went well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class PathVisits:
    """Visits to the children of every node along one path."""

    path: Int[np.ndarray, "position"]
    """The path's tokens."""
    taken: Float[np.ndarray, "position 2"]
    """Visits and successes of the child that the path itself takes at each position."""
    others: Mapping[tuple[int, int], tuple[int, float]]
    """Visits and successes of every other child, by position and token."""

    def children(self, position: int, token_ids: Sequence[int]) -> tuple[Int[np.ndarray, "child"], Float[np.ndarray, "child"]]:
        """Visits and successes of these children of the node before a position."""
        own = int(self.path[position])
        found = [tuple(self.taken[position]) if token == own else self.others.get((position, int(token)), (0, 0.0)) for token in token_ids]
        visits, successes = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return visits.astype(np.int64), successes


def count_visits(
    path: Int[np.ndarray, "position"], responses: Sequence[Int[np.ndarray, "token"]], success: Float[np.ndarray, "response"]
) -> PathVisits:
    r"""Count every response at every node of a path that it passes through, wherever and however it was started.

    Args:
        path: Tokens of one response; its node at position t is the prefix of its first t tokens.
        responses: Token ids of responses to the same question, each from its first token on: ordinary rollouts, and forced continuations with
            the prefix and the forced token before them.
        success: 1 for a success, 0 for a failure, per response.

    Returns:
        Visits and successes of every child. A response visits (u, j) if its tokens start with u and then j.

    Notes:
        This is the source paper's count. It is biased where continuations were forced below a node: a continuation forced through a token at
        u is also counted at every ancestor of u, as if the student had come that way by itself. Give only ordinary rollouts, or only
        continuations forced at the node itself, for counts that are not.

    References:
        arXiv 2605.10889; METHOD section 8.

    Example:
        A rollout (1, 2), and a continuation forced from its root's child 1 through 3:

        >>> counts = count_visits(np.array([1, 2]), [np.array([1, 2]), np.array([1, 3])], np.array([0.0, 1.0]))
        >>> [values.tolist() for values in counts.children(0, [1])]
        [[2], [1.0]]
        >>> [values.tolist() for values in counts.children(1, [2, 3])]
        [[1, 1], [0.0, 1.0]]
    """
    shared = np.zeros((len(path) + 1, 2))
    others: dict[tuple[int, int], tuple[int, float]] = {}
    for response, value in zip(responses, success, strict=True):
        length = min(len(path), len(response))
        differs = response[:length] != path[:length]
        together = int(np.argmax(differs)) if differs.any() else length
        shared[together] += 1.0, value
        if together < length:
            key = (together, int(response[together]))
            visits, successes = others.get(key, (0, 0.0))
            others[key] = visits + 1, successes + float(value)
    # a response that shares `together` tokens with the path took the path's token at every position before that
    taken = np.cumsum(shared[::-1], axis=0)[::-1][1:]
    return PathVisits(path, taken, others)
