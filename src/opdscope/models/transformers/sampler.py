"""Samples continuations with one copy of each shared prefix, in batches that stay full."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from opdscope.models.base import Progress, Sample, SampleRequest
from opdscope.models.transformers.drawing import draw_tokens
from opdscope.models.transformers.engine import SharedPrefixEngine
from opdscope.models.transformers.head import OutputHead
from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.passes import RowLayout
from opdscope.models.transformers.rows import ActiveRows, Job, Moves

_PREFILL_TOKENS = 4096
_REFILL_FRACTION = 8  # rows are admitted when an eighth of the batch is free: one prefill for many, at 94 % mean occupancy or more


class TransformersSampler:
    """A :class:`~opdscope.models.base.Sampler` over a local model."""

    def __init__(self, language_model: LanguageModel, max_rows: int = 256, eos_token_ids: tuple[int, ...] | None = None) -> None:
        """Wrap a model.

        Args:
            language_model: The student.
            max_rows: Continuations sampled at a time; see :meth:`estimate_bytes` for what they cost. Changes no result.
            eos_token_ids: Tokens that end a continuation; None for the model's own, () to always run to the length limit.

        Raises:
            ValueError: If `max_rows` is less than 1.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self._language_model = language_model
        self._max_rows = max_rows
        self._eos_token_ids = language_model.eos_token_ids if eos_token_ids is None else eos_token_ids
        self._head = language_model.output_head()

    def sample(self, requests: Sequence[SampleRequest], temperature: float, progress: Progress | None = None) -> list[list[Sample]]:
        """See :class:`~opdscope.models.base.Sampler`; requests with equal trunks share one prefill and one copy of its keys and values.

        Raises:
            ValueError: If the temperature is not positive, or a request's length, token ids or limit are out of range.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {temperature}")
        for request in requests:
            _check(request, self._language_model.vocab_size)
        run = _SamplingRun(self._language_model, self._head, requests, self._max_rows, self._eos_token_ids, temperature)
        with torch.inference_mode():
            return run.finish(progress or _no_progress)

    def estimate_bytes(self, num_trunks: int, trunk_tokens: int, new_tokens: int) -> int:
        """Upper estimate of memory beside the weights while sampling.

        Args:
            num_trunks: Trunks in the batch at a time, at most `max_rows`.
            trunk_tokens: Tokens of the longest.
            new_tokens: Forced and sampled tokens of the longest continuation.

        Returns:
            Bytes: a token's keys and values · (num_trunks · trunk_tokens + max_rows · 2 · new_tokens) (the 2 because buffers grow by
            doubling), and max_rows · vocab_size · 12 for one step's logits, probabilities and sums.
        """
        tokens = num_trunks * trunk_tokens + self._max_rows * 2 * new_tokens
        return self._language_model.cache_bytes_per_token * tokens + self._max_rows * self._language_model.vocab_size * 12


@dataclass
class _Trunk:
    """A prefix and the continuations wanted from it, the next one last."""

    token_ids: tuple[int, ...]
    waiting: list[Job] = field(default_factory=list)
    last_hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    """Hidden state after the first n tokens, for the n from which a continuation without forced tokens starts."""


class _SamplingRun:
    """The state of one call of `sample`: trunks that wait, trunks in the cache (list index = slot), and rows."""

    def __init__(
        self,
        language_model: LanguageModel,
        head: OutputHead,
        requests: Sequence[SampleRequest],
        max_rows: int,
        eos_token_ids: tuple[int, ...],
        temperature: float,
    ) -> None:
        self._engine, self._head = SharedPrefixEngine(language_model), head
        self._temperature, self._eos_token_ids = temperature, np.array(eos_token_ids, dtype=np.int64)
        self._samples = [[Sample((), False)] * len(request.seeds) for request in requests]
        self._waiting = deque(_group(requests))
        self._resident: list[_Trunk] = []
        num_jobs = sum(len(trunk.waiting) for trunk in self._waiting)
        width = max((len(request.forced) + request.max_new_tokens for request in requests), default=0)
        self._rows = ActiveRows(min(max_rows, num_jobs), width)
        self._layout: RowLayout | None = None

    def finish(self, progress: Progress) -> list[list[Sample]]:
        """Sample until every continuation has ended."""
        while self._rows.count or self._something_waits():
            self._admit(progress)
            self._retire()
            if self._rows.count:
                self._step(progress)
                self._retire()
        return self._samples

    def _something_waits(self) -> bool:
        return bool(self._waiting) or any(trunk.waiting for trunk in self._resident)

    def _admit(self, progress: Progress) -> None:
        """Fill free places, trunks already in the cache first; continuations without forced tokens draw their first token at once."""
        rows = self._rows
        free = rows.capacity - rows.count
        if free == 0 or (rows.count and free * _REFILL_FRACTION < rows.capacity) or not self._something_waits():
            return
        first_row, prefilled = rows.count, len(self._resident)
        for slot, trunk in enumerate(self._resident):
            self._admit_from(trunk, slot)
        while self._waiting and rows.count < rows.capacity:
            trunk = self._waiting.popleft()
            self._resident.append(trunk)
            self._admit_from(trunk, len(self._resident) - 1)
        self._prefill(prefilled)
        self._layout = None
        first_draws = np.flatnonzero(rows.field("num_forced")[first_row:] == 0) + first_row
        if len(first_draws):
            states = [self._resident[rows.field("trunk")[row]].last_hidden[int(rows.field("length")[row])] for row in first_draws]
            self._draw(first_draws, torch.stack(states), progress)

    def _admit_from(self, trunk: _Trunk, slot: int) -> None:
        while trunk.waiting and self._rows.count < self._rows.capacity:
            self._rows.add(trunk.waiting.pop(), slot)

    def _prefill(self, first_slot: int) -> None:
        """Read the trunks from slot `first_slot` on, in batches of bounded size."""
        while first_slot < len(self._resident):
            longest = len(self._resident[first_slot].token_ids)  # trunks come longest first
            batch = self._resident[first_slot : first_slot + max(1, _PREFILL_TOKENS // longest)]
            hidden = self._engine.prefill([trunk.token_ids for trunk in batch], first_slot)
            for index, trunk in enumerate(batch):
                trunk.last_hidden = {length: hidden[index, length - 1].clone() for length in trunk.last_hidden}
            first_slot += len(batch)

    def _step(self, progress: Progress) -> None:
        """Read the next token of every row; rows whose forced tokens are read draw one."""
        rows = self._rows
        if self._layout is None:
            self._layout = RowLayout(rows.field("trunk"), rows.field("length").copy(), self._engine.device)
        hidden = self._engine.advance(self._layout, rows.field("read"), rows.next_tokens()[:, None])[:, 0]
        rows.field("read")[:] += 1
        drawing = np.flatnonzero(rows.field("read") == rows.field("known"))
        if len(drawing) < rows.count:
            hidden = hidden[torch.from_numpy(drawing).to(hidden.device)]
        if len(drawing):
            self._draw(drawing, hidden, progress)

    def _draw(self, rows: np.ndarray, hidden: torch.Tensor, progress: Progress) -> None:
        token_ids, logprobs = draw_tokens(self._head.logits(hidden), self._temperature, self._rows.uniforms(rows))
        self._rows.append(rows, token_ids, logprobs, self._eos_token_ids)
        progress(len(rows))

    def _retire(self) -> None:
        """Hand over rows that have ended and close the gaps they leave, in rows and in trunks."""
        rows, live = self._rows, self._rows.live()
        if live.all():
            return
        for row in np.flatnonzero(~live):
            job = rows.jobs[row]
            self._samples[job.request][job.sample] = Sample(*rows.drawn(int(row)))
        moves = Moves.closing_gaps(live)
        longest = int(rows.field("read")[moves.sources].max(initial=0))
        self._engine.cache.move_suffixes(moves.sources, moves.targets, longest)
        rows.keep(moves)
        self._drop_trunks()
        self._layout = None

    def _drop_trunks(self) -> None:
        used = np.bincount(self._rows.field("trunk"), minlength=len(self._resident)) > 0
        used |= np.array([bool(trunk.waiting) for trunk in self._resident], dtype=bool)
        if used.all():
            return
        moves = Moves.closing_gaps(used)
        longest = max((len(self._resident[slot].token_ids) for slot in moves.sources), default=0)
        self._engine.cache.move_trunks(moves.sources, moves.targets, longest)
        new_slot = np.arange(len(self._resident))
        new_slot[moves.sources] = moves.targets
        self._rows.field("trunk")[:] = new_slot[self._rows.field("trunk")]
        for source, target in zip(moves.sources, moves.targets, strict=True):
            self._resident[target] = self._resident[source]
        del self._resident[moves.count :]


def _group(requests: Sequence[SampleRequest]) -> list[_Trunk]:
    """Requests by trunk, the longest trunk first so that padding and memory are largest at the start."""
    trunks: dict[tuple[int, ...], _Trunk] = {}
    for index, request in enumerate(requests):
        if request.max_new_tokens == 0:
            continue
        trunk = trunks.setdefault(request.trunk, _Trunk(request.trunk))
        if not request.forced:
            trunk.last_hidden[request.length] = torch.empty(0)
        mirrored = request.mirrored or (False,) * len(request.seeds)
        for sample, (seed, mirror) in enumerate(zip(request.seeds, mirrored, strict=True)):
            trunk.waiting.append(Job(index, sample, request.length, request.forced, seed, mirror, request.max_new_tokens))
    groups = [trunk for trunk in trunks.values() if trunk.waiting]
    for trunk in groups:
        trunk.waiting.reverse()
    return sorted(groups, key=lambda trunk: -len(trunk.token_ids))


def _check(request: SampleRequest, vocab_size: int) -> None:
    if not 1 <= request.length <= len(request.trunk):
        raise ValueError(f"length must be between 1 and the trunk's {len(request.trunk)} tokens, got {request.length}")
    if request.max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {request.max_new_tokens}")
    outside = [token for token in (*request.trunk, *request.forced) if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(f"token ids must be between 0 and {vocab_size - 1}, got {outside[0]}")


def _no_progress(num_tokens: int) -> None:
    """Report to nobody."""
