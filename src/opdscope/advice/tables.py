"""The two tables of a recipe."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from opdscope.advice.details import Details
from opdscope.advice.files import TABLES
from opdscope.advice.recipe import QUESTIONS_FILE, TOKEN_WEIGHTS_FILE
from opdscope.summary.teachers import measured_rollouts, outcome_values


def question_table(tables: Mapping[str, pa.Table], details: Details | None) -> pa.Table:
    """Weights and curriculum; without a teacher the questions in the order of the task, all of weight 1 and in one batch."""
    questions = tables["questions"].select(["question_id", "text"]).to_pylist()
    success = [_mean(outcome_values(rows)) for rows in measured_rollouts(tables).values()]
    count = len(questions)
    order, batch, held_back = np.arange(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    gain, sd, weights = np.full(count, np.nan), np.full(count, np.nan), np.ones(count)
    if details is not None:
        plan = details.curriculum
        order, batch, held_back, gain, sd = plan.order, plan.batch, plan.held_back, plan.gains.mean, plan.gains.sd
        weights = details.questions.weights if details.questions.helps else weights
    rows: list[dict[str, Any]] = [
        {
            "question_id": questions[i]["question_id"],
            "question": questions[i]["text"],
            "place": place,
            "batch": int(batch[i]),
            "held_back": bool(held_back[i]),
            "weight": float(weights[i]),
            "success": success[i],
            "gain": float(gain[i]),
            "gain_sd": float(sd[i]),
        }
        for place, i in enumerate(order.tolist())
    ]
    return pa.Table.from_pylist(rows, schema=TABLES[QUESTIONS_FILE])


def token_table(details: Details | None, confidence: float) -> pa.Table:
    """Every bin of every feature that was tried."""
    rows: list[dict[str, Any]] = []
    for parts in [] if details is None else details.tokens:
        edges = [-np.inf, *parts.edges.tolist(), np.inf]
        push = np.nansum(parts.sums.pushes, axis=0)
        for k, gain in enumerate(parts.gains(confidence)):
            rows.append(
                {
                    "feature": parts.name,
                    "low": edges[k],
                    "high": edges[k + 1],
                    "weight": float(parts.weights[k]),
                    "share_of_tokens": float(parts.share_of_tokens[k]),
                    "share_of_push": float(push[k] / push.sum()),
                    "gain": gain.value,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                }
            )
    return pa.Table.from_pylist(rows, schema=TABLES[TOKEN_WEIGHTS_FILE])


def _mean(values: np.ndarray) -> float:
    verified = values[~np.isnan(values)]
    return float(np.mean(verified)) if len(verified) else float("nan")
