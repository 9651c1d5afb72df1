"""How the nodes of a run follow one another along their paths, and which continuations of one arrive at the next."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from opdscope.core.backup import PathLinks
from opdscope.records import Outcome

_Path = tuple[str, int]  # question and rollout index


def read_links(tables: Mapping[str, pa.Table], rows: Sequence[Mapping[str, Any]]) -> PathLinks:
    """The links between nodes of the same path.

    Args:
        tables: Every table of the run by name.
        rows: Stored rows of the nodes, those of a path in order of position. A node that is not among them is as if it had not been drawn.
    """
    following, steps = _following(rows), path_steps(tables, rows)
    stratum = _taken_strata(tables["strata"], rows, steps)
    logprobs = _by_path(tables["student_positions"], "logprob", rows)
    stay_prob = np.ones(len(rows))
    for i, row in enumerate(rows):
        start = row["position"] + 1
        own = logprobs[_path(row)][start : start + max(len(steps[i]) - 1, 0)]
        stay_prob[i] = np.exp(np.sum(own, dtype=np.float64))
    staying, correct = _count_staying(tables["continuations"], rows, stratum, steps)
    return PathLinks(np.where(stratum >= 0, following, -1), stratum, staying, correct, stay_prob)


def path_steps(tables: Mapping[str, pa.Table], rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """The path's tokens from each node to the next one of the same path, the node's own first; none at the last node of a path.

    Args:
        tables: Every table of the run by name.
        rows: As for :func:`read_links`.
    """
    tokens = _by_path(tables["rollouts"], "token_ids", rows)
    return [_steps(rows, tokens, i, int(j)) for i, j in enumerate(_following(rows))]


def list_arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The rows of a list column as views of the stored values, since there may be very many."""
    found: list[np.ndarray] = []
    for chunk in column.chunks:
        flat, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        found += [flat[start:stop] for start, stop in itertools.pairwise(offsets)]
    return found


def flat_lists(column: pa.ChunkedArray) -> tuple[np.ndarray, Int[np.ndarray, "row"]]:
    """The rows of a list column of numbers one after another, and how long each is."""
    parts = [chunk.values.to_numpy(zero_copy_only=False)[chunk.offsets[0].as_py() : chunk.offsets[-1].as_py()] for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype=column.type.value_type.to_pandas_dtype()), *parts]), list_lengths(column)


def list_lengths(column: pa.ChunkedArray) -> Int[np.ndarray, "row"]:
    """Numbers of entries in the rows of a list column."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks)]).astype(np.int64)


def _path(row: Mapping[str, Any]) -> _Path:
    return row["question_id"], row["rollout_index"]


def _following(rows: Sequence[Mapping[str, Any]]) -> Int[np.ndarray, "node"]:
    """The next node of each node's path, -1 at the last one."""
    found = np.full(len(rows), -1, dtype=np.int64)
    latest: dict[_Path, int] = {}
    for i, row in enumerate(rows):
        if (before := latest.get(_path(row))) is not None:
            found[before] = i
        latest[_path(row)] = i
    return found


def _by_path(table: pa.Table, column: str, rows: Sequence[Mapping[str, Any]]) -> dict[_Path, np.ndarray]:
    wanted = {_path(row) for row in rows}
    keys = zip(table["question_id"].to_pylist(), table["rollout_index"].to_pylist(), strict=True)
    return {key: values for key, values in zip(keys, list_arrays(table[column]), strict=True) if key in wanted}


def _steps(rows: Sequence[Mapping[str, Any]], tokens: Mapping[_Path, np.ndarray], i: int, j: int) -> tuple[int, ...]:
    """The path's tokens from a node to the next one; none where there is no next one."""
    return tuple(tokens[_path(rows[i])][rows[i]["position"] : rows[j]["position"]].tolist()) if j >= 0 else ()


def _taken_strata(strata: pa.Table, rows: Sequence[Mapping[str, Any]], steps: Sequence[tuple[int, ...]]) -> Int[np.ndarray, "node"]:
    """The stratum of the path's token at each node; -1 where it leads nowhere or lies in the tail."""
    index_of = {row["node_id"]: i for i, row in enumerate(rows)}
    found = np.full(len(rows), -1, dtype=np.int64)
    for row in strata.select(["node_id", "stratum", "token_id"]).to_pylist():
        i = index_of.get(row["node_id"], -1)
        if i >= 0 and steps[i] and row["token_id"] == steps[i][0]:
            found[i] = row["stratum"]
    return found


def _count_staying(
    continuations: pa.Table, rows: Sequence[Mapping[str, Any]], stratum: Int[np.ndarray, "node"], steps: Sequence[tuple[int, ...]]
) -> tuple[Int[np.ndarray, "node"], Int[np.ndarray, "node"]]:
    """Verified continuations through the path's token that repeat the path up to the next node, and the correct ones among them."""
    index_of = {row["node_id"]: i for i, row in enumerate(rows) if stratum[i] >= 0}
    staying, correct = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    columns = (continuations[name].to_pylist() for name in ("node_id", "stratum", "outcome"))
    for node_id, own, outcome, tokens in zip(*columns, list_arrays(continuations["token_ids"]), strict=True):
        i = index_of.get(node_id, -1)
        if i < 0 or own != stratum[i] or outcome == Outcome.UNVERIFIABLE:
            continue
        # the forced token is not repeated in the stored ones
        if tuple(tokens[: len(steps[i]) - 1].tolist()) == steps[i][1:]:
            staying[i] += 1
            correct[i] += outcome == Outcome.CORRECT
    return staying, correct
