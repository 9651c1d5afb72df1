"""What was asked for, whether it was reached, and what it was foretold to cost beside what it did cost."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from opdscope.config import Config
from opdscope.records import Role
from opdscope.summary.looks import order_of
from opdscope.summary.nodes import planned_counts
from opdscope.summary.split import measure_split
from opdscope.summary.widths import node_widths


def summarize_target(tables: Mapping[str, pa.Table], config: Config) -> dict[str, Any]:
    """The target of a run as plain data.

    Returns:
        `kind`; `reached`: True or False where the target has a state to reach, else None; `note`: what it stands at, in words; `cost`: tokens
        foretold after the pilot and tokens spent, for the stage that the target decides about, or None without a forecast.
    """
    kind, cost = config.target.kind, _cost(tables)
    reached, note = None, ""
    if kind == "rank":
        reached, note = _rank(tables, config)
    elif kind == "split":
        reached, note = _split(tables, config)
    elif kind == "map":
        reached, note = _map(tables, config)
    elif cost is not None:
        note = _budget(tables, config, cost["spent_tokens"])
    return {"kind": kind, "reached": reached, "note": note, "cost": cost}


def _rank(tables: Mapping[str, pa.Table], config: Config) -> tuple[bool, str]:
    order = order_of(tables, config)
    if order is None:
        return False, "no look at a real teacher is finished yet"
    first = order.names[: config.target.top]
    drawn = f"{order.rollouts} of at most {config.rollouts.num_rollouts} rollouts a question"
    if not order.undecided:
        rivals = "against each other, all others and their nulls" if len(order.names) > 1 else "against its null"
        return True, f"settled with {drawn}: {', '.join(first)}, {rivals}"
    pairs = [f"{a} against {b or 'its null'}" for a, b in order.undecided]
    return False, f"not settled with {drawn}; open: {', '.join(pairs)}"


def _split(tables: Mapping[str, pa.Table], config: Config) -> tuple[bool, str]:
    splits, wanted = measure_split(tables, config), config.target.width
    if not splits:
        return False, "no continuations yet"
    words: list[str] = []
    for split in splits:
        d = split.difference
        if math.isnan(split.width):
            words.append(f"{split.teacher} has no two questions with both kinds of paths, or does not push")
            continue
        enough = (
            ""
            if split.width <= wanted or split.continuations_help
            else ", more questions or paths would narrow it, more continuations hardly"
        )
        words.append(f"{split.teacher} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] (width {split.width:.2f}{enough})")
    reached = all(split.width <= wanted for split in splits)
    return reached, f"gain on incorrect minus on correct paths, width {wanted:g} wanted: {'; '.join(words)}"


def _map(tables: Mapping[str, pa.Table], config: Config) -> tuple[bool, str]:
    widths, wanted = node_widths(tables, config), config.target.width
    pushed = ~np.isnan(widths)
    if not pushed.any():
        return False, "no continuations yet"
    narrow = int(np.sum(widths[pushed] <= wanted))
    words = f"{narrow:,} of {int(pushed.sum()):,} intervals of nodes and teachers are no wider, the widest is {np.nanmax(widths):.2g}"
    return narrow == int(pushed.sum()), f"width {wanted:g} wanted: {words}{_full(tables, config)}"


def _budget(tables: Mapping[str, pa.Table], config: Config, spent: int) -> str:
    allowed = [f"{config.target.tokens:,} tokens"] if config.target.tokens is not None else []
    allowed += [f"{config.target.seconds:g} seconds"] if config.target.seconds is not None else []
    return f"{' or '.join(allowed)} of continuations allowed, {spent:,} tokens drawn{_full(tables, config)}"


def _full(tables: Mapping[str, pa.Table], config: Config) -> str:
    """Says where more continuations would have been drawn but for the setting that limits them."""
    most = config.targeted.max_continuations
    full = sum(count >= most for count in planned_counts(tables).values()) if tables["rounds"].num_rows else 0
    return f"; {full:,} strata have targeted.max_continuations = {most}" if full else ""


def _cost(tables: Mapping[str, pa.Table]) -> dict[str, Any] | None:
    forecasts = tables["forecasts"].to_pylist()
    if not forecasts:
        return None
    forecast = forecasts[-1]
    if forecast["stage"] == "rollouts":
        rows = tables["rollouts"].select(["role", "token_ids"]).to_pylist()
        spent = sum(len(row["token_ids"]) for row in rows if row["role"] == Role.MEASURED)
    else:
        spent = sum(len(tokens) for tokens in tables["continuations"]["token_ids"].to_pylist())
    return {"stage": forecast["stage"], "foretold_tokens": round(forecast["tokens"]), "spent_tokens": spent}
