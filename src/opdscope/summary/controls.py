"""Corrections of screening gains by what is stored anyway: free, unbiased, and worth as much as that knows of the outcome.

Control variates are products of the teachers' own log-ratios. Fitted values foretell the outcome at each position from what the prefix shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.core.controls import cross_fitted_slopes, zero_mean_products
from opdscope.core.values import cross_fitted_values, prefix_features, success_log_odds
from opdscope.summary.paths import list_arrays

_FOLDS = 10
"""Parts of the questions that the regression leaves out in turn."""

_Rollout = tuple[str, int]  # question and index


class Controls:
    """Centred log-ratios of the informing teachers at every scored rollout."""

    def __init__(self, tables: Mapping[str, pa.Table], teachers: Sequence[str]) -> None:
        """Read what is scored; a teacher without a context for a question informs nothing there."""
        place = {name: k for k, name in enumerate(teachers)}
        self._num = len(teachers)
        self._controls: dict[_Rollout, Float[np.ndarray, "control position"]] = {}
        positions = tables["teacher_positions"]
        ratios, divergences = (list_arrays(positions[name]) for name in ("log_ratio", "reverse_kl"))
        labels = positions.select(["question_id", "rollout_index", "teacher"]).to_pylist()
        for row, ratio, divergence in zip(labels, ratios, divergences, strict=True):
            if row["teacher"] in place:
                centred = ratio.astype(np.float64) + divergence
                own = self._controls.setdefault((row["question_id"], row["rollout_index"]), np.zeros((len(teachers), len(centred))))
                # where the teacher excludes a token that the student may take, its divergence has no bound: it informs nothing there
                own[place[row["teacher"]]] = np.where(np.isfinite(divergence) & np.isfinite(ratio), centred, 0.0)

    def centred(self, rollout: _Rollout, length: int) -> Float[np.ndarray, "control position"]:
        """Log-ratio at each token of a rollout, less its mean under the student; zero of a teacher without a context for the question."""
        return self._controls.get(rollout, np.zeros((self._num, length)))

    def products(self, rollout: _Rollout, signal: Float[np.ndarray, "position"]) -> Float[np.ndarray, "control"]:
        """Products of the controls and a teacher's centred signal at different positions of a rollout; mean zero."""
        return zero_mean_products(self.centred(rollout, len(signal)), signal.astype(np.float64))


def corrections(
    contributions: Sequence[Float[np.ndarray, "rollout"]], products: Sequence[Float[np.ndarray, "rollout control"]]
) -> Float[np.ndarray, "question"]:
    """What to subtract from the gain of each question, with slopes learned at other questions.

    Args:
        contributions: Per question, (R - b) F of each rollout; NaN where there is no verdict.
        products: Per question, the products of each rollout.

    Returns:
        Numbers with mean zero: averaged over all rollouts, since the mean over those with a verdict need not be zero.
    """
    lengths = np.array([len(own) for own in contributions])
    question = np.repeat(np.arange(len(lengths)), lengths)
    values, columns = np.concatenate(contributions), np.concatenate(products)
    known = np.flatnonzero(np.isfinite(values))
    slopes = cross_fitted_slopes(columns[known], values[known], question[known] % _FOLDS)
    # one slope a question, that of its first rollout with a verdict; a question without any has no correction
    judged, first = np.unique(question[known], return_index=True)
    found, means = np.zeros(len(lengths)), np.zeros((len(lengths), columns.shape[1]))
    filled = np.flatnonzero(lengths)
    means[filled] = np.add.reduceat(columns, (np.cumsum(lengths) - lengths)[filled]) / lengths[filled, None]
    found[judged] = np.sum(slopes[first] * means[judged], axis=1)
    return found


def fitted_values(
    tables: Mapping[str, pa.Table], outcomes: Mapping[str, Mapping[int, float]], informing: Sequence[str]
) -> dict[_Rollout, Float[np.ndarray, "position"]]:
    """Success foretold before each token of every scored rollout, by a regression on other questions' rollouts.

    Args:
        tables: Every table of the run by name.
        outcomes: By question and rollout; NaN where there is no verdict.
        informing: Teachers whose log-odds so far help to foretell.

    Returns:
        Values in [0, 1]; none where no other questions with a verdict are there to learn from.
    """
    positions, controls = tables["student_positions"], Controls(tables, informing)
    rows = positions.select(["question_id", "rollout_index"]).to_pylist()
    keys: list[_Rollout] = [(row["question_id"], row["rollout_index"]) for row in rows]
    shares = _shares(rows, outcomes)
    features, right, fold = [], [], []
    place = {question_id: k for k, question_id in enumerate(outcomes)}
    for key, entropy, logprob in zip(keys, *(list_arrays(positions[name]) for name in ("entropy", "logprob")), strict=True):
        student = np.stack([entropy, logprob]).astype(np.float64)[:, None]
        own = prefix_features(np.array([shares[key]]), student[0], student[1], controls.centred(key, len(entropy))[:, None])
        features.append(own[0])
        right.append(np.full(len(entropy), outcomes[key[0]][key[1]]))
        fold.append(np.full(len(entropy), place[key[0]] % _FOLDS))
    if len({place[q] % _FOLDS for q, index in keys if not np.isnan(outcomes[q][index])}) < 2:
        return {}
    found = cross_fitted_values(np.concatenate(features), np.concatenate(right), np.concatenate(fold))
    return dict(zip(keys, np.split(found, np.cumsum([len(own) for own in right])[:-1]), strict=True))


def _shares(rows: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Mapping[int, float]]) -> dict[_Rollout, float]:
    """Success of each rollout's question in its other scored rollouts."""
    scored: dict[str, list[int]] = {}
    for row in rows:
        scored.setdefault(row["question_id"], []).append(row["rollout_index"])
    found: dict[_Rollout, float] = {}
    for question_id, indices in scored.items():
        log_odds = success_log_odds(np.array([outcomes[question_id][index] for index in indices]))
        found |= {(question_id, index): float(value) for index, value in zip(indices, log_odds, strict=True)}
    return found
