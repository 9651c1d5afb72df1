"""Real continuations of a run's strata in an exact world, many at once: outcomes with the controls that they would have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from worlds import Question

from opdscope.core.backup import PathLinks
from opdscope.core.controlled import ControlledContinuations


@dataclass(frozen=True)
class Drawn:
    """Continuations, one a row."""

    rows: ControlledContinuations
    """With one control for each mixture of teachers."""
    index: np.ndarray
    """Of each within its stratum."""


@dataclass(frozen=True)
class Start:
    """A node."""

    question: Question
    """Its question."""
    position: int
    """Where it lies."""
    state: int
    """What the tokens before it lead to."""
    tokens: Sequence[np.ndarray]
    """Probability of every token in each stratum."""
    path: np.ndarray
    """The path's tokens from the node to the next one of its path; empty at the last one."""


def continue_from(
    starts: Sequence[Start],
    links: PathLinks,
    counts: np.ndarray,
    following: np.ndarray,
    mix: np.ndarray,
    source: np.random.Generator,
    pairs: bool = False,
) -> Drawn:
    """So many continuations of each stratum.

    Args:
        starts: Where they begin.
        links: Which strata lead on to other nodes.
        counts: Node × stratum.
        following: State after each token, position × state × token.
        mix: Control × teacher: what each control adds up.
        source: Of the random numbers.
        pairs: Draw the second of every two with one minus the numbers of the first.
    """
    by_question: dict[int, list[int]] = {}
    for i, start in enumerate(starts):
        by_question.setdefault(id(start.question), []).append(i)
    parts = [_of_question(starts, own, links, counts, following, mix, source, pairs) for own in by_question.values()]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    index = columns.pop("index")
    return Drawn(ControlledContinuations(**columns), index)


def _of_question(
    starts: Sequence[Start],
    own: Sequence[int],
    links: PathLinks,
    counts: np.ndarray,
    following: np.ndarray,
    mix: np.ndarray,
    source: np.random.Generator,
    pairs: bool,
) -> Mapping[str, Any]:
    question = starts[own[0]].question
    cumulative = question.cumulative
    push = np.einsum("ct,tpsk->psck", mix, question.signal[: mix.shape[1]])
    strata = [(i, k) for i in own for k in range(counts.shape[1]) if counts[i, k]]
    many = np.array([counts[place] for place in strata])
    node, stratum = (np.repeat(np.array(column), many) for column in zip(*strata, strict=True))
    index = np.concatenate([np.arange(count) for count in many])
    forced = np.concatenate(
        [source.choice(len(starts[i].tokens[k]), size=counts[i, k], p=starts[i].tokens[k] / starts[i].tokens[k].sum()) for i, k in strata]
    )
    place = np.array([starts[i].position for i in node])
    state = following[place, np.array([starts[i].state for i in node]), forced]
    linked = (links.next_node[node] >= 0) & (links.stratum[node] == stratum)
    size = np.array([len(starts[i].path) - 1 for i in node])
    paths = np.full((len(starts), max(len(start.path) for start in starts) + 1), -1)
    for i in own:
        paths[i, : len(starts[i].path)] = starts[i].path
    on_path, step = linked.copy(), 0
    control, before, after = np.zeros((3, len(node), len(mix)))
    outcome = np.zeros(len(node))
    place += 1
    while (live := place < len(cumulative)).any():
        numbers = source.random(len(node))
        if pairs:
            numbers = np.where(index % 2 == 1, 1.0 - np.roll(numbers, 1), numbers)
        where = np.minimum(place, len(cumulative) - 1)
        rows = cumulative[where, state]
        token = np.sum(rows <= numbers[:, None] * rows[:, -1:], axis=-1)
        value = np.where(live[:, None], push[where, state, :, token], 0.0)
        arrived = on_path & (step >= size)
        stays_on = on_path & (arrived | (token == paths[node, np.minimum(step + 1, paths.shape[1] - 1)]))
        control += value
        before += np.where((on_path & ~arrived)[:, None], value, 0.0)
        after += np.where((arrived | ~on_path)[:, None], value, 0.0)
        outcome = np.where(live & (place == len(cumulative) - 1), token == 0, outcome)
        state = following[where, state, token]
        on_path, place, step = stays_on, place + 1, step + 1
    stays = on_path
    return {
        "node": node, "stratum": stratum, "outcome": outcome.astype(np.float64), "linked": linked, "stays": stays, "control": control,
        "before": np.where(stays[:, None], before, control), "after": after, "index": index,
    }  # fmt: skip
