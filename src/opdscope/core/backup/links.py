"""How the measured nodes of a path hang together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError


@dataclass(frozen=True)
class PathLinks:
    """How the nodes of a path hang together: one entry per node."""

    next_node: Int[np.ndarray, "node"]
    """Index of the next measured node of the same path, larger than the node's own; -1 where nothing is to be backed up: at the last node of
    a path, and where the path's token has no stratum to itself. What the other fields hold there is ignored."""
    stratum: Int[np.ndarray, "node"]
    """Stratum of the path's token."""
    num_staying: Int[np.ndarray, "node"] | Float[np.ndarray, "node"]
    """Verified continuations of that stratum that repeat the path up to the next node."""
    num_staying_correct: Int[np.ndarray, "node"] | Float[np.ndarray, "node"]
    """Of these, the correct ones."""
    stay_prob: Float[np.ndarray, "node"]
    """Probability that the student, after the path's token, repeats the path up to the next node."""

    def __post_init__(self) -> None:
        shapes = {field.shape for field in (self.next_node, self.stratum, self.num_staying, self.num_staying_correct, self.stay_prob)}
        if len(shapes) > 1:
            raise ShapeError(f"expected one entry per node in every field of the links, found shapes {sorted(shapes)}")
        if np.any((self.next_node >= 0) & (self.next_node <= np.arange(len(self.next_node)))):
            raise ValueError("a link leads to the node itself or to an earlier one; sort the nodes of each path by position")


def no_links(num_nodes: int) -> PathLinks:
    """Links that lead nowhere: every node stands alone."""
    nothing = np.zeros(num_nodes, dtype=np.int64)
    return PathLinks(np.full(num_nodes, -1), nothing, nothing, nothing, np.ones(num_nodes))


def require_same_nodes(student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks) -> None:
    """Raise ShapeError unless probabilities, outcomes and links are about the same nodes and strata."""
    if student_probs.shape != outcomes.num_verified.shape or len(student_probs) != len(links.next_node):
        raise ShapeError(
            f"expected probabilities and outcomes of the {len(links.next_node)} linked nodes, "
            f"found shapes {student_probs.shape} and {outcomes.num_verified.shape}"
        )


def linked_nodes(student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks) -> Bool[np.ndarray, "node"]:
    """Nodes whose path's token was sampled and whose next node has a value to back up."""
    known = (outcomes.num_verified > 0) | ~np.isnan(outcomes.terminal)
    has_value = np.sum(np.where(known, student_probs, 0.0), axis=-1) > 0
    sampled = outcomes.num_verified[np.arange(len(student_probs)), links.stratum] > 0
    return (links.next_node >= 0) & has_value[links.next_node] & sampled


def from_last_to_first(
    student_probs: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes, links: PathLinks
) -> list[Int[np.ndarray, "own"]]:
    """Linked nodes in groups, each node in a later group than the one that it leads to."""
    linked = linked_nodes(student_probs, outcomes, links)
    steps = np.zeros(len(linked), dtype=np.int64)
    for i in reversed(np.flatnonzero(linked).tolist()):
        steps[i] = steps[links.next_node[i]] + 1
    return [np.flatnonzero(steps == step) for step in range(1, int(steps.max(initial=0)) + 1)]
