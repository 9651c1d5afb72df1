"""The strata of a node as they are stored: a token or the tail, a teacher's signal reduced to them, and what is known without sampling."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.divergences import kl_divergence, signal_of
from opdscope.core.gradients import distillation_gradient
from opdscope.pipeline.experiment import Experiment
from opdscope.pipeline.scores import Response
from opdscope.records import Outcome


def stratum_row(
    node_id: str, stratum: int, token: int, text: str, prob: float, squared: float, terminal: float, count: int
) -> dict[str, Any]:
    """A row of table `strata` whose planned continuations, if any, all start with its token."""
    return {
        "node_id": node_id,
        "stratum": stratum,
        "token_id": token,
        "token_text": text,
        "student_prob": prob,
        "squared_prob": squared,
        "terminal": terminal,
        "forced_token_ids": [token] * int(count),
    }


def stratum_signals(
    student: Float[np.ndarray, "vocab"],
    teacher: Float[np.ndarray, "vocab"],
    objective: str,
    token_ids: Int[np.ndarray, "candidate"],
    tail: Float[np.ndarray, "vocab"] | None,
) -> dict[str, Any]:
    """Teacher probability, signal and gradient per stratum; for the tail student-weighted means over its tokens."""
    probs, teacher_probs = np.exp(student), np.exp(teacher)
    with np.errstate(over="ignore"):  # a forward-KL signal may exceed any float; it is then infinite, as documented
        signal = signal_of(objective)(student, teacher)
    gradient = distillation_gradient(student, teacher, objective)
    reached = probs > 0
    mean = float(np.sum(probs[reached] * signal[reached]))
    variance = float(np.sum(probs[reached] * (signal[reached] - mean) ** 2))
    columns = {"teacher_prob": [*teacher_probs[token_ids]], "signal": [*signal[token_ids]], "gradient": [*gradient[token_ids]]}
    if tail is not None:
        mass, inside = tail.sum(), tail > 0
        columns["teacher_prob"].append(max(1.0 - float(np.sum(teacher_probs[token_ids])), 0.0))
        columns["signal"].append(float(np.sum(tail[inside] * signal[inside]) / mass))
        columns["gradient"].append(float(np.sum(tail * gradient) / mass))
    return {
        **columns,
        "signal_variance": variance,
        "gradient_squared_norm": float(np.sum(gradient**2)),
        "reverse_kl": float(kl_divergence(student, teacher)),
    }


def settle_terminals(experiment: Experiment, tables: dict[str, list[dict[str, Any]]], places: dict[str, tuple[Response, int]]) -> None:
    """Verify responses that a candidate ends: their success is known without sampling. An unverifiable one stays unknown."""
    eos = set(experiment.student.eos_token_ids)
    ending = [row for row in tables["strata"] if row["token_id"] in eos]
    responses = [(*places[row["node_id"]][0].token_ids[: places[row["node_id"]][1]], row["token_id"]) for row in ending]
    verdicts = experiment.verify([places[row["node_id"]][0].question_id for row in ending], responses, [True] * len(ending))
    for row, (_, outcome) in zip(ending, verdicts, strict=True):
        row["terminal"] = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0}.get(outcome, np.nan)


def name_node(response: Response, position: int) -> str:
    """The id of the node before a position of a rollout."""
    return f"{response.question_id}/{response.rollout_index}/{position}"


def normalised(logprobs: Float[np.ndarray, "vocab"]) -> Float[np.ndarray, "vocab"]:
    """A float64 row that sums to one: the float32 softmax of a large vocabulary is off by a few units of 1e-6."""
    row = logprobs.astype(np.float64)
    return row - np.log(np.sum(np.exp(row)))
