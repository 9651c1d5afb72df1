"""Corrections of screening gains by the teachers' own log-ratios: free, unbiased, and worth as much as the teachers know of the outcome."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opdscope.core.controls import cross_fitted_slopes, zero_mean_products
from opdscope.summary.paths import list_arrays

_FOLDS = 10
"""Parts of the questions that the regression leaves out in turn."""

_Rollout = tuple[str, int]  # question and index


class Controls:
    """Centred log-ratios of the informing teachers at every scored rollout."""

    def __init__(self, tables: Mapping[str, pa.Table], teachers: Sequence[str]) -> None:
        """Read what is scored; a teacher without a context for a question informs nothing there."""
        place = {name: k for k, name in enumerate(teachers)}
        self._controls: dict[_Rollout, Float[np.ndarray, "control position"]] = {}
        positions = tables["teacher_positions"]
        ratios, divergences = (list_arrays(positions[name]) for name in ("log_ratio", "reverse_kl"))
        labels = positions.select(["question_id", "rollout_index", "teacher"]).to_pylist()
        for row, ratio, divergence in zip(labels, ratios, divergences, strict=True):
            if row["teacher"] in place:
                centred = ratio.astype(np.float64) + divergence
                own = self._controls.setdefault((row["question_id"], row["rollout_index"]), np.zeros((len(teachers), len(centred))))
                # a token that the teacher excludes has a log-ratio without bound: such a teacher informs nothing there
                own[place[row["teacher"]]] = centred if np.isfinite(centred).all() else 0.0

    def products(self, rollout: _Rollout, signal: Float[np.ndarray, "position"]) -> Float[np.ndarray, "control"]:
        """Products of the controls and a teacher's centred signal at different positions of a rollout; mean zero."""
        return zero_mean_products(self._controls[rollout], signal.astype(np.float64))


def corrections(
    contributions: Sequence[Float[np.ndarray, "rollout"]], products: Sequence[Float[np.ndarray, "rollout control"]]
) -> list[float]:
    """What to subtract from the gain of each question, with slopes learned at other questions.

    Args:
        contributions: Per question, (R - b) F of each rollout; NaN where there is no verdict.
        products: Per question, the products of each rollout.

    Returns:
        Numbers with mean zero: averaged over all rollouts, since the mean over those with a verdict need not be zero.
    """
    folds = np.concatenate([np.full(len(own), k % _FOLDS) for k, own in enumerate(contributions)])
    values, columns = np.concatenate(contributions), np.concatenate(products)
    known = np.isfinite(values)
    slopes = np.zeros(columns.shape)
    slopes[known] = cross_fitted_slopes(columns[known], values[known], folds[known])
    found: list[float] = []
    start = 0
    for own in products:
        part = slopes[start : start + len(own)][known[start : start + len(own)]]
        found.append(float(part[0] @ own.mean(axis=0)) if len(part) else 0.0)
        start += len(own)
    return found
