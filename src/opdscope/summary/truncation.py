"""Where a trainer's top-k truncation changes what an objective does: from the stored strata, without a model and without a further sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.aggregation import Estimate, clustered_statistic, ratio
from opdscope.core.alignment import natural_gain
from opdscope.core.divergences import split_objective
from opdscope.core.truncation import largest, truncated_signal
from opdscope.summary.nodes import NodeArrays, Posterior, padded
from opdscope.summary.weights import question_weights

SIZES = (1, 2, 4, 8, 16)
"""Supports that are tried, as far as the measured candidates hold them."""

_LEAST_SHARE = 0.5
"""Share of a teacher's push that has to lie at nodes where the support is known, for its numbers to be given."""


@dataclass(frozen=True)
class Truncation:
    """One truncated objective of one teacher, beside the full one at the same nodes."""

    teacher: str
    """Whose push."""
    objective: str
    """The objective that is truncated."""
    support: str
    """Whose likeliest tokens are kept, as TRL does it: `teacher` for forward KL, `student` for reverse KL, `either` in between."""
    size: int
    """Tokens kept of each."""
    tail_bucket: bool
    """Whether all other tokens make up one bucket; else both distributions are renormalised over the support."""
    full: Estimate
    """Natural gain of one token without truncation, mean over the nodes where the support is known."""
    truncated: Estimate
    """The same with truncation."""
    cosine: Estimate
    """Mean correlation, under the student, of truncated and full signal: the cosine of the two pushes in the Fisher metric. No success enters."""
    share_turned: float
    """Share of these nodes, by weight, where that is negative: the push points away from where the full one points."""
    share_known: float
    """Share of the full push (weight times variance of its signal) at nodes where the support is known to lie among the measured candidates."""
    says: str
    """`flips`: both gains' intervals exclude zero, on opposite sides. `keeps`: on one side. `no push`: nothing is left. Else `not settled`."""


def truncations(tables: Mapping[str, pa.Table], nodes: NodeArrays, posterior: Posterior, config: Config) -> list[Truncation]:
    """Every truncation of every real teacher's objectives that the stored strata can tell of.

    Args:
        tables: Every table of the run by name.
        nodes: The nodes; they need inclusion probabilities.
        posterior: Success at these.
        config: Objectives and confidence.

    Returns:
        Teachers in the configured order. A support is known at a node if its least likely token is at least as likely as anything in the tail can
        be; sizes that are known for less than half of the push are left out: more candidates (`targeted.max_candidates`) would tell of them.
    """
    weights = question_weights(nodes.rows)
    place = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    found: list[Truncation] = []
    names = tables["node_signals"]["teacher"].to_pylist(), tables["node_signals"]["objective"].to_pylist()
    for teacher in (t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS):
        for objective in config.objectives:
            keep = [i for i, pair in enumerate(zip(*names, strict=True)) if pair == (teacher, objective)]
            columns = ["node_id", "teacher_prob", "signal", "signal_variance"]
            rows = [row for row in tables["node_signals"].select(columns).take(keep).to_pylist() if row["node_id"] in place]
            if rows:
                index = np.array([place[row["node_id"]] for row in rows])
                width = nodes.probs.shape[1]
                q, full = (padded([row[name] for row in rows], width) for name in ("teacher_prob", "signal"))
                view = _Teacher(nodes, index, q, full, np.array([row["signal_variance"] for row in rows]), posterior.mean[index])
                found += view.truncations(teacher, objective, weights[index], config.analysis.confidence)
    return found


@dataclass(frozen=True)
class _Teacher:
    nodes: NodeArrays
    index: np.ndarray
    q: Float[np.ndarray, "node stratum"]
    full: Float[np.ndarray, "node stratum"]
    variance: Float[np.ndarray, "node"]
    success: Float[np.ndarray, "node stratum"]

    def truncations(self, teacher: str, objective: str, weights: Float[np.ndarray, "node"], level: float) -> list[Truncation]:
        p = self.nodes.probs[self.index]
        found: list[Truncation] = []
        for size in SIZES:
            support, inside, known = self._support(objective, size)
            size_of_push = weights * np.where(np.isfinite(self.variance), self.variance, 0.0)
            total = float(np.sum(size_of_push))
            share_known = float(np.sum(size_of_push[known]) / total) if total > 0 else 0.0
            if share_known < _LEAST_SHARE:
                continue
            gain = self._gain(p, self.full)
            for tail_bucket in (True, False):
                signal = truncated_signal(p, self.q, inside, objective, tail_bucket)
                cut, cosine = self._gain(p, signal), self._cosine(p, signal)
                known_gain, known_cut, known_cosine = (np.where(known, values, np.nan) for values in (gain, cut, cosine))
                full, kept, direction = (self._mean(values, weights, level) for values in (known_gain, known_cut, known_cosine))
                pushed = ~np.isnan(known_cosine)
                turned = float(np.sum(weights[pushed & (cosine < 0)]) / np.sum(weights[pushed])) if pushed.any() else float("nan")
                says = _says(full, kept, bool(pushed.any()))
                found.append(Truncation(teacher, objective, support, size, tail_bucket, full, kept, direction, turned, share_known, says))
        return found

    def _support(self, objective: str, size: int) -> tuple[str, Bool[np.ndarray, "node stratum"], Bool[np.ndarray, "node"]]:
        """Whose likeliest tokens are kept, which they are, and where that is certain."""
        p, is_tail = self.nodes.probs[self.index], self.nodes.is_tail[self.index]
        # the likeliest token of a tail is no likelier than the tail, nor than the root of its sum of squares
        largest_p = np.where(is_tail, np.minimum(p, np.sqrt(self.nodes.squared_probs[self.index])), 0.0).sum(axis=-1)
        largest_q = np.where(is_tail, self.q, 0.0).sum(axis=-1)
        single = ~is_tail & (p > 0)
        parts = {"student": (p, largest_p), "teacher": (self.q, largest_q)}
        beta = split_objective(objective)[1]
        support = "either" if beta is not None else "teacher" if objective == "forward_kl" else "student"
        chosen = parts if support == "either" else {support: parts[support]}
        inside, known = np.zeros(p.shape, dtype=bool), np.ones(len(p), dtype=bool)
        for probs, outside in chosen.values():
            top = largest(np.where(single, probs, -1.0), size) & single
            least = np.min(np.where(top, probs, np.inf), axis=-1)
            known &= ((top.sum(axis=-1) == size) & (least >= outside)) | (outside == 0)
            inside |= top
        return support, inside, known

    def _gain(self, p: Float[np.ndarray, "node stratum"], signal: Float[np.ndarray, "node stratum"]) -> Float[np.ndarray, "node"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = natural_gain(np.log(p), signal, self.success)
        return np.where(np.isfinite(found), found, np.nan)

    def _cosine(self, p: Float[np.ndarray, "node stratum"], signal: Float[np.ndarray, "node stratum"]) -> Float[np.ndarray, "node"]:
        with np.errstate(invalid="ignore"):
            centred = signal - np.sum(p * signal, axis=-1, keepdims=True)
            product = np.sum(p * centred * np.where(p > 0, self.full, 0.0), axis=-1)
            scale = np.sum(p * centred**2, axis=-1) * self.variance
            # rounding of a push that is not there has no direction: 1e-12 as in core.alignment
            return np.where(scale > 1e-24, np.clip(product / np.sqrt(np.where(scale > 0, scale, 1.0)), -1.0, 1.0), np.nan)

    def _mean(self, values: Float[np.ndarray, "node"], weights: Float[np.ndarray, "node"], level: float) -> Estimate:
        sums: dict[str, np.ndarray] = {}
        for i, value, weight in zip(self.index, values, weights, strict=True):
            if not np.isnan(value):
                question = self.nodes.rows[i]["question_id"]
                sums[question] = sums.get(question, np.zeros(2)) + weight * np.array([value, 1.0])
        return clustered_statistic(np.array(list(sums.values())).reshape(-1, 2), ratio, level)


def _says(full: Estimate, truncated: Estimate, has_push: bool) -> str:
    if not has_push:
        return "no push"
    signs: Sequence[int] = [int(e.low > 0) - int(e.high < 0) for e in (full, truncated)]
    if 0 in signs:
        return "not settled"
    return "keeps" if signs[0] == signs[1] else "flips"
