"""Corrections of screening gains by what is stored anyway: free, unbiased, and worth as much as that knows of the outcome.

Control variates are products of the teachers' own log-ratios. Fitted values foretell the outcome at each position from what the prefix shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from opdscope.core.controls import slopes_of_folds, zero_mean_products
from opdscope.core.values import cross_fitted_values, prefix_features, success_log_odds
from opdscope.summary.paths import list_arrays
from opdscope.summary.positions import Rollout, read_teacher_positions, rollouts_of

_FOLDS = 10
"""Parts of the questions that the regression leaves out in turn."""

_MOST_ENTRIES = 1 << 15
"""Of the signals that are multiplied at a time: that many stay near the processor."""


class Controls:
    """Centred log-ratios of the informing teachers at every scored rollout."""

    def __init__(self, tables: Mapping[str, pa.Table], teachers: Sequence[str]) -> None:
        """Read what is scored; a teacher without a context for a question informs nothing there."""
        found = read_teacher_positions(tables["teacher_positions"], teachers)
        self._places, self._centred = found.places, found.centred

    def centred(self, rollout: Rollout, length: int) -> Float[np.ndarray, "control position"]:
        """Log-ratio at each token of a rollout, less its mean under the student; zero of a teacher without a context for the question."""
        place = self._places.get(rollout)
        return self._centred[:, place] if place is not None else np.zeros((len(self._centred), length))

    def products(
        self, rollouts: Sequence[Rollout], *signals: Sequence[Float[np.ndarray, "position"]]
    ) -> Float[np.ndarray, "row kind control"]:
        """Products of the controls and a teacher's centred signals at different positions of each rollout; mean zero.

        Args:
            rollouts: That of each row.
            signals: Of each row, one or several kinds.
        """
        found = np.zeros((len(rollouts), len(signals), len(self._centred)))
        rows_of: dict[Rollout, list[int]] = {}
        for row, rollout in enumerate(rollouts):
            rows_of.setdefault(rollout, []).append(row)
        alike: dict[tuple[int, int], list[Rollout]] = {}  # rollouts of one length that as many rows judge
        for rollout, rows in rows_of.items():
            if (place := self._places.get(rollout)) is not None:
                alike.setdefault((place.stop - place.start, len(rows)), []).append(rollout)
        for (length, count), some in alike.items():
            size = max(_MOST_ENTRIES // max(length * count * len(signals), 1), 1)
            for block in (some[start : start + size] for start in range(0, len(some), size)):
                own = [rows_of[rollout] for rollout in block]
                signal = np.concatenate([kind[row] for rows in own for row in rows for kind in signals]).astype(np.float64)
                control = np.stack([self._centred[:, self._places[rollout]] for rollout in block])[:, None, None]
                with np.errstate(invalid="ignore"):  # a signal without a bound has no product either
                    found[own] = zero_mean_products(control, signal.reshape(len(block), count, len(signals), length))
        return found


def corrections(
    contributions: Float[np.ndarray, "*batch question rollout"],
    products: Float[np.ndarray, "*batch question rollout control"],
    scored: Bool[np.ndarray, "*#batch question rollout"],
) -> Float[np.ndarray, "*batch question"]:
    """What to subtract from the gain of each question, with slopes learned at other questions.

    Args:
        contributions: (R - b) F of each rollout; NaN where there is no verdict, and where it is not scored.
        products: The products of each rollout.
        scored: Where there are any.

    Returns:
        Numbers with mean zero: averaged over all scored rollouts, since the mean over those with a verdict need not be zero. Zero of a question
        without a verdict.
    """
    *batch, questions, rollouts, number = products.shape
    if questions * rollouts == 0:
        return np.zeros((*batch, questions))
    fold = np.arange(questions) % _FOLDS
    columns, values = products.reshape(*batch, questions * rollouts, number), contributions.reshape(*batch, questions * rollouts)
    slopes = slopes_of_folds(columns, values, np.repeat(fold, rollouts))[..., fold, :]
    means = (scored[..., None, :].astype(np.float64) @ products)[..., 0, :] / np.maximum(scored.sum(axis=-1), 1)[..., None]
    judged = np.isfinite(contributions).any(axis=-1)
    return np.where(judged, np.sum(slopes * means, axis=-1), 0.0)


def fitted_values(
    tables: Mapping[str, pa.Table], outcomes: Mapping[str, Mapping[int, float]], informing: Sequence[str]
) -> dict[Rollout, Float[np.ndarray, "position"]]:
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
    keys = rollouts_of(positions)
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


def _shares(rows: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Mapping[int, float]]) -> dict[Rollout, float]:
    """Success of each rollout's question in its other scored rollouts."""
    scored: dict[str, list[int]] = {}
    for row in rows:
        scored.setdefault(row["question_id"], []).append(row["rollout_index"])
    found: dict[Rollout, float] = {}
    for question_id, indices in scored.items():
        log_odds = success_log_odds(np.array([outcomes[question_id][index] for index in indices]))
        found |= {(question_id, index): float(value) for index, value in zip(indices, log_odds, strict=True)}
    return found
