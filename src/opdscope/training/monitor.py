"""The free monitor: screening on the rollouts, rewards and log-probabilities that the trainer has anyway, as a series with intervals.

The gains are those of the unweighted objective under the current context. Weights by outcome would make the estimate biased, because a sum
over a response must not depend on that response's own outcome.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from opdscope.core.streaming import Series, combined_error, sharpening_factor, step_gain
from opdscope.training.loss import ScoredRows
from opdscope.training.mixing import LiveMix
from opdscope.training.rules import LEAST_VERIFIED

DEPTH_EDGES = (0.0, 8.0, 32.0, 128.0, 512.0, 2048.0, float("inf"))
"""Of the depth bins, in tokens from the beginning of the response."""
ENTROPY_EDGES = (0.0, 0.05, 0.5, 1.5, float("inf"))
"""Of the entropy bins, in nats."""

_DEPTHS, _ENTROPIES = len(DEPTH_EDGES) - 1, len(ENTROPY_EDGES) - 1
_GAIN, _NULL, _DIFFERENCE, _FIRST_BIN = 0, 1, 2, 3
_SUMS = ("signal", "sharpening", "squared", "reverse_kl", "entropy", "tokens", "signal_squared")
_LARGEST_STRIDE = 64


@dataclass(frozen=True)
class _Sums:
    """A batch reduced to sums over each of its responses, on the device that it came from."""

    totals: torch.Tensor
    """[row, _SUMS]."""
    bins: torch.Tensor
    """Signal by depth and entropy, [row, depth · entropy]."""
    bin_tokens: torch.Tensor
    """Tokens of rows with a context by depth and entropy, [depth · entropy]."""
    outcomes: torch.Tensor
    """NaN where unknown, [row]."""
    has_context: torch.Tensor
    """Rows without one do not count for the gains, [row]."""
    questions: torch.Tensor
    """[row]."""


@dataclass(frozen=True)
class StepRows:
    """What one process saw of the responses of one step."""

    totals: Float[np.ndarray, "row sum"]
    """Columns :data:`_SUMS`."""
    bins: Float[np.ndarray, "row bin"]
    """Signal by depth and entropy."""
    bin_tokens: Float[np.ndarray, "bin"]
    """Tokens by depth and entropy."""
    outcomes: Float[np.ndarray, "row"]
    """NaN where unknown."""
    questions: Int[np.ndarray, "row"]
    """Number of each response's question."""
    has_context: Bool[np.ndarray, "row"]
    """False where the teacher pushes nothing, for want of a context."""

    @classmethod
    def together(cls, parts: Sequence["StepRows"]) -> "StepRows":
        """Those of several processes."""
        totals, bins, outcomes, questions, kept = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("totals", "bins", "outcomes", "questions", "has_context")
        )
        return cls(totals, bins, np.sum([part.bin_tokens for part in parts], axis=0), outcomes, questions, kept)


@dataclass(frozen=True)
class Reading:
    """What the monitor says at one moment; standard errors beside each mean. NaN before there is anything to say."""

    success: float
    """Mean reward of the student's rollouts."""
    success_error: float
    """Its standard error."""
    natural_gain: float
    """Of the objective, success per unit step, summed over a response."""
    natural_gain_error: float
    """Its standard error."""
    null_gain: float
    """Of the student sharpened or flattened, whichever is better, as hard as the teacher pushes."""
    gain_over_null: float
    """The difference."""
    gain_over_null_error: float
    """Its standard error, given the factor that makes the null push as hard."""
    reverse_kl: float
    """KL(student ‖ teacher) summed over a response, in nats."""
    entropy: float
    """The student's, mean over tokens, in nats."""
    length: float
    """Tokens of a response."""
    num_rollouts: int
    """Seen since the beginning or the last change of objective or context."""
    num_unverified: int
    """Of these, without an outcome."""
    num_steps: float
    """How many equally weighted steps the means are worth."""
    best_share: float
    """Weight of distillation, against reinforcement learning, with the largest predicted gain per size of the push; NaN without a mix."""
    best_share_low: float
    """Lower end of its interval."""
    best_share_high: float
    """Upper end."""
    rl_alignment: float
    """Cosine with the ideal gradient, in the Fisher metric, of GRPO's expected gradient."""
    distillation_alignment: float
    """Of the distillation gradient."""
    mixed_alignment: float
    """Of their best mix; chosen on the same rollouts, and so a little too high."""
    bins: tuple[tuple[str, float, float, float, float, float], ...]
    """axis, low, high, natural gain, its error, tokens a response."""

    def interval(self, name: str, confidence: float) -> tuple[float, float]:
        """Lower and upper end of `success`, `natural_gain` or `gain_over_null`."""
        value, error = getattr(self, name), getattr(self, f"{name}_error")
        half = float(norm.ppf(0.5 + confidence / 2)) * error
        return value - half, value + half


@dataclass
class FreeMonitor:
    """Reads batches as they are trained on; see :meth:`observe`, :meth:`end_step` and :meth:`reading`."""

    half_life: float = 20.0
    """Optimizer steps after which a step counts half."""
    budget: float = 0.02
    """Most of the training time that may be spent here; beyond it only every second, fourth, … step is read."""
    mix: LiveMix | None = None
    """Of reinforcement learning and distillation, where the trainer mixes them."""
    confidence: float = 0.9
    """Level of the intervals of the mix."""
    seconds: float = 0.0
    """Spent here so far, and since the last change of stride."""
    stride: int = 1
    """Every so many steps are read."""
    is_shared: bool = False
    """Whether other processes read, too: what is read then waits for :meth:`hand_over` and :meth:`take`."""
    _held: dict[int, list[StepRows]] = field(default_factory=dict[int, list[StepRows]])
    _batches: list[_Sums] = field(default_factory=list[_Sums])
    _waiting: list[_Sums] = field(default_factory=list[_Sums])
    _step: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        """Start with nothing seen."""
        self.restart()

    def restart(self) -> None:
        """Forget what was seen, because objective or context has changed: the old series says nothing about the new one."""
        decay = 0.5 ** (1.0 / self.half_life)
        self._gains, self._success, self._means = Series(decay), Series(decay), Series(decay)
        self._bin_tokens = Series(decay)
        self._num_rollouts = self._num_unverified = 0
        self._batches, self._waiting, self._held = [], [], {}
        if self.mix is not None:
            self.mix.restart()

    @property
    def share(self) -> float:
        """Of the time since the stride last changed, what was spent here."""
        return self.seconds / max(time.perf_counter() - self._started, 1e-9)

    def observe(self, rows: ScoredRows, weights: torch.Tensor) -> None:
        """Reduce a batch to sums over its responses; nothing is copied off the device yet."""
        if self._step % self.stride:
            return
        started = time.perf_counter()
        self._batches.append(_reduce(rows))
        self.seconds += time.perf_counter() - started

    def end_step(self) -> None:
        """Take the batches of the last but one optimizer step into the series: those of the last one may still be under way on the device."""
        started = time.perf_counter()
        ready, self._waiting, self._batches = self._waiting, self._batches, []
        self._read(ready)
        self._step += 1
        self.seconds += time.perf_counter() - started
        if self._step % 32 == 0:
            self._keep_budget()

    def flush(self) -> None:
        """Take what is still waiting, at the end of training."""
        self._read(self._waiting)
        self._waiting = []

    def hand_over(self) -> dict[int, list[StepRows]]:
        """What was read since the last time, by step; empty unless other processes read, too."""
        held, self._held = self._held, {}
        return held

    def take(self, held: Sequence[Mapping[int, Sequence[StepRows]]]) -> None:
        """What all processes have handed over, in their order: each step's responses count as one step's."""
        for step in sorted({step for own in held for step in own}):
            self._include(StepRows.together([part for own in held for part in own.get(step, ())]))

    def _keep_budget(self) -> None:
        wanted = self.stride * (2.0 if self.share > self.budget else 0.5 if 3.0 * self.share < self.budget else 1.0)
        stride = int(min(max(wanted, 1), _LARGEST_STRIDE))
        if stride != self.stride:
            self.stride, self.seconds, self._started = stride, 0.0, time.perf_counter()

    def _read(self, batches: Sequence[_Sums]) -> None:
        if not batches:
            return
        rows = _on_host(batches)
        if self.is_shared:
            self._held.setdefault(self._step, []).append(rows)
        else:
            self._include(rows)

    def _include(self, rows: StepRows) -> None:
        known, kept = ~np.isnan(rows.outcomes), rows.has_context
        if known.sum() >= LEAST_VERIFIED:
            self._success = self._success.advance(*_success(rows.outcomes[known]), int(known.sum()))
            if self.mix is not None:
                push, squares = rows.totals[:, 0] * kept, rows.totals[:, 6] * kept
                self.mix.take(rows.outcomes, rows.questions, push, squares, rows.totals[:, 5])
        totals, outcomes = rows.totals[kept], rows.outcomes[kept]
        self._num_rollouts += len(outcomes)
        self._num_unverified += int(np.sum(~known[kept]))
        if not len(totals):
            return
        self._means = self._means.advance(totals.mean(axis=0), np.zeros(len(_SUMS)), len(totals))
        self._bin_tokens = self._bin_tokens.advance(rows.bin_tokens / len(totals), np.zeros(1), len(totals))
        if (known & kept).sum() < LEAST_VERIFIED:
            return
        gain = step_gain(outcomes, rows.questions[kept], _features(totals, rows.bins[kept]))
        self._gains = self._gains.advance(gain.value, gain.error, gain.num_verified)

    def reading(self) -> Reading:
        """What can be said now."""
        nan = float("nan")
        means = dict(zip(_SUMS, self._means.mean if self._means.weight else np.full(len(_SUMS), nan), strict=True))
        has_gain = self._gains.weight > 0
        gains, errors = (self._gains.mean, self._gains.error) if has_gain else (np.full(_FIRST_BIN, nan),) * 2
        factor = sharpening_factor(means["reverse_kl"], means["squared"]) * (-1.0 if gains[_NULL] < 0 else 1.0)
        return Reading(
            success=float(self._success.mean[0]) if self._success.weight else nan,
            success_error=float(self._success.error[0]) if self._success.weight else nan,
            natural_gain=float(gains[_GAIN]),
            natural_gain_error=float(errors[_GAIN]),
            null_gain=factor * float(gains[_NULL]),
            gain_over_null=float(gains[_GAIN]) - factor * float(gains[_NULL]),
            gain_over_null_error=combined_error(errors[_GAIN], errors[_NULL], errors[_DIFFERENCE], factor) if has_gain else nan,
            reverse_kl=float(means["reverse_kl"]),
            entropy=float(means["entropy"] / means["tokens"]),
            length=float(means["tokens"]),
            num_rollouts=self._num_rollouts,
            num_unverified=self._num_unverified,
            num_steps=self._gains.num_steps,
            bins=tuple(self._bins()) if has_gain else (),
            **self._mix(),
        )

    def _mix(self) -> dict[str, float]:
        found = None if self.mix is None else self.mix.reading(self.confidence)
        names = ("best_share", "best_share_low", "best_share_high", "rl_alignment", "distillation_alignment", "mixed_alignment")
        if found is None:
            return dict.fromkeys(names, float("nan"))
        share = found.share
        return dict(
            zip(names, (share.value, share.low, share.high, found.rl.value, found.distillation.value, found.mixed.value), strict=True)
        )

    def _bins(self) -> list[tuple[str, float, float, float, float, float]]:
        tokens = self._bin_tokens.mean.reshape(_DEPTHS, _ENTROPIES)
        axes = (("depth", DEPTH_EDGES, tokens.sum(axis=1)), ("entropy", ENTROPY_EDGES, tokens.sum(axis=0)))
        edges = [(axis, low, high, n) for axis, ends, counts in axes for low, high, n in zip(ends[:-1], ends[1:], counts, strict=True)]
        pairs = zip(edges, self._gains.mean[_FIRST_BIN:], self._gains.error[_FIRST_BIN:], strict=True)
        return [(axis, low, high, float(gain), float(error), float(n)) for (axis, low, high, n), gain, error in pairs if n > 0]


def _on_host(batches: Sequence[_Sums]) -> StepRows:
    """Batches of a step off the device."""
    names = ("totals", "bins", "outcomes", "questions", "has_context")
    totals, bins, outcomes, questions, kept = (torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy() for name in names)
    tokens = torch.stack([batch.bin_tokens for batch in batches]).sum(dim=0).cpu().numpy()
    return StepRows(totals.astype(float), bins.astype(float), tokens, outcomes.astype(float), questions, kept)


def _features(totals: Float[np.ndarray, "row sum"], bins: Float[np.ndarray, "row bin"]) -> Float[np.ndarray, "feature row"]:
    """Push of the teacher, of the sharpened student, their difference, and the teacher's by depth and by entropy."""
    signal, sharpening = totals[:, 0], totals[:, 1]
    table = bins.reshape(-1, _DEPTHS, _ENTROPIES)
    return np.concatenate([[signal, sharpening, signal - sharpening], table.sum(axis=2).T, table.sum(axis=1).T])


def _success(outcomes: Float[np.ndarray, "rollout"]) -> tuple[Any, Any]:
    """Mean reward and its error, to which half a success and half a failure are added lest it be zero."""
    count, mean = len(outcomes), float(np.mean(outcomes))
    spread = float(np.mean((outcomes - mean) ** 2)) * count
    return np.array([mean]), np.array([np.sqrt((spread + 0.5) / (count + 1) / count)])


@torch.no_grad()
def _reduce(rows: ScoredRows) -> _Sums:
    sharpening, ones = rows.sharpening_signal, torch.ones_like(rows.signal)
    values = torch.stack([rows.signal, sharpening, sharpening**2, rows.reverse_kl, rows.entropy, ones, rows.signal**2], dim=-1)
    totals = values.new_zeros(rows.num_rows, len(_SUMS)).index_add_(0, rows.row, values)
    depth = torch.bucketize(rows.position.float(), torch.tensor(DEPTH_EDGES[1:-1], device=values.device), right=True)
    entropy = torch.bucketize(rows.entropy, torch.tensor(ENTROPY_EDGES[1:-1], device=values.device), right=True)
    place = depth * _ENTROPIES + entropy
    size = _DEPTHS * _ENTROPIES
    bins = values.new_zeros(rows.num_rows * size).index_add_(0, rows.row * size + place, rows.signal)
    tokens = values.new_zeros(size).index_add_(0, place, rows.has_context[rows.row].to(ones))
    return _Sums(totals, bins.reshape(rows.num_rows, size), tokens, rows.outcomes, rows.has_context, rows.questions)
