"""What is known of a stratum before any of its continuations is drawn, and the success that this foretells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from opdscope.core.allocation import cross_fitted_success
from opdscope.core.success import StratumOutcomes
from opdscope.records import Outcome, Role
from opdscope.summary.paths import list_lengths

READ = ["question_id", "rollout_index", "role", "token_ids", "outcome"]
"""Columns of the table `rollouts` that are needed."""


def response_lengths(rollouts: pa.Table) -> dict[tuple[str, int], int]:
    """Tokens of each rollout."""
    keys = zip(rollouts["question_id"].to_pylist(), rollouts["rollout_index"].to_pylist(), strict=True)
    return dict(zip(keys, list_lengths(rollouts["token_ids"]).tolist(), strict=True))


def stratum_features(
    rollouts: pa.Table, rows: Sequence[Mapping[str, Any]], probs: Float[np.ndarray, "node stratum"], is_tail: np.ndarray
) -> Float[np.ndarray, "node stratum feature"]:
    """Where a stratum lies, what became of its path, how often its question is answered, and how likely it is.

    Args:
        rollouts: The columns :data:`READ` of the table.
        rows: Rows of the nodes.
        probs: Student probability of each stratum.
        is_tail: Boolean, node × stratum.
    """
    length, share = response_lengths(rollouts), _question_log_odds(rollouts)
    depth = np.array([row["position"] / max(length[row["question_id"], row["rollout_index"]], 1) for row in rows])
    outcome = np.array([1.0 if row["path_outcome"] == "correct" else -1.0 for row in rows])
    node = [np.array([share[row["question_id"]] for row in rows]), outcome, depth, outcome * depth]
    node += [np.array([row["entropy"] for row in rows])]
    logprob = np.log(np.maximum(probs, 1e-6))
    columns = [np.repeat(values[:, None], probs.shape[1], axis=1) for values in node]
    return np.stack([*columns, logprob, logprob * outcome[:, None], is_tail.astype(np.float64)], axis=-1)


def foretold_success(
    features: Float[np.ndarray, "node stratum feature"], outcomes: StratumOutcomes, fold: Int[np.ndarray, "node"]
) -> Float[np.ndarray, "node stratum"]:
    """Success of each stratum by a regression on the outcomes of other folds; 1/2 where nothing was sampled in any stratum of that kind.

    Args:
        features: Of each stratum.
        outcomes: What was observed.
        fold: Of each node.
    """
    use = np.nonzero(outcomes.num_verified > 0)
    found = np.full(outcomes.num_verified.shape, 0.5)
    found[use] = cross_fitted_success(features[use], outcomes.num_correct[use], outcomes.num_verified[use], fold[use[0]])
    return found


def _question_log_odds(rollouts: pa.Table) -> dict[str, float]:
    """Success of each question's measured rollouts, with half a success and half a failure added."""
    counts: dict[str, list[int]] = {}
    for row in rollouts.select(["question_id", "role", "outcome"]).to_pylist():
        if row["role"] == Role.MEASURED and row["outcome"] != Outcome.UNVERIFIABLE:
            counts.setdefault(row["question_id"], [0, 0])[row["outcome"] == Outcome.CORRECT] += 1
    return {question: float(np.log((right + 0.5) / (wrong + 0.5))) for question, (wrong, right) in counts.items()}
