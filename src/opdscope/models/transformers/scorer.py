"""Scores responses: hidden states at the requested positions, log-probability rows on demand."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from opdscope.models.base import Progress, ScoreRequest
from opdscope.models.transformers.engine import SharedPrefixEngine
from opdscope.models.transformers.head import OutputHead
from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.passes import RowLayout

_QUERY_TOKENS = 512  # longer responses are read in pieces, which bounds the scores of one layer to batch · heads · 512 · length


class HiddenStates:
    """An :class:`~opdscope.models.base.Encoding`: last hidden states [num_rows, hidden], float32, on the model's device."""

    def __init__(self, states: torch.Tensor, head: OutputHead) -> None:
        self.num_rows = states.shape[0]
        self._states, self._head = states, head

    def logprobs(self, start: int, stop: int, temperature: float) -> torch.Tensor:
        """Float32 log-probabilities [stop - start, vocab_size] of rows [start, stop): log-softmax of logits / temperature.

        Raises:
            ValueError: If the rows are out of range or the temperature is not positive.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise ValueError(f"rows must satisfy 0 <= start <= stop <= {self.num_rows}, got {start} and {stop}")
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {temperature}")
        with torch.inference_mode():
            return torch.log_softmax(self._head.logits(self._states[start:stop]).div_(temperature), dim=-1)


class TransformersScorer:
    """A :class:`~opdscope.models.base.Scorer` over a local model; float32 logits and softmax whatever the type of the model."""

    def __init__(self, language_model: LanguageModel, chunk_tokens: int = 4096) -> None:
        """Wrap a model.

        Args:
            language_model: Student or teacher.
            chunk_tokens: Padded tokens read by one forward pass (more only if one prompt or response is longer). Bounds memory.

        Raises:
            ValueError: If `chunk_tokens` is less than 1.
        """
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        self._language_model, self._chunk_tokens = language_model, chunk_tokens
        self._head = language_model.output_head("float32")
        self.vocab_size = language_model.vocab_size

    def encode(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> HiddenStates:
        """See :class:`~opdscope.models.base.Scorer`. Progress counts response tokens; requests with equal prompts share its prefill.

        Raises:
            ValueError: If a prompt is empty, or a position or token id is out of range.
        """
        for request in requests:
            _check(request, self.vocab_size)
        stops = np.cumsum([len(request.positions) for request in requests], dtype=np.int64)
        num_rows = int(stops[-1]) if len(stops) else 0
        states = torch.empty(num_rows, self._head.hidden_size, dtype=torch.float32, device=self._language_model.device)
        reader = _Reader(self._language_model, self._chunk_tokens)
        with torch.inference_mode():
            for indices in _batches(requests, self._chunk_tokens):
                batch = [requests[index] for index in indices]
                for index, request, rows in zip(indices, batch, reader.read(batch), strict=True):
                    states[stops[index] - len(request.positions) : stops[index]] = rows
                if progress is not None:
                    progress(sum(map(_num_read, batch)))
        return HiddenStates(states, self._head)


class _Reader:
    """Reads batches of requests; keeps the prompts of the last batch, which the next one often shares."""

    def __init__(self, language_model: LanguageModel, chunk_tokens: int) -> None:
        self._engine, self._chunk_tokens = SharedPrefixEngine(language_model), chunk_tokens
        self._slots: dict[tuple[int, ...], int] = {}
        self._after_prompts: list[torch.Tensor] = []

    def read(self, batch: Sequence[ScoreRequest]) -> Iterator[torch.Tensor]:
        """Hidden states [positions, hidden] of each request."""
        prompts = list(dict.fromkeys(request.prompt_ids for request in batch))
        if prompts != list(self._slots):
            self._prefill(prompts)
        slots = np.array([self._slots[request.prompt_ids] for request in batch], dtype=np.int64)
        after_tokens = self._read_responses(batch, slots)
        for row, request in enumerate(batch):
            positions = torch.tensor(request.positions, dtype=torch.long, device=self._engine.device)
            yield torch.cat((self._after_prompts[slots[row]][None], after_tokens[row]))[positions]

    def _prefill(self, prompts: list[tuple[int, ...]]) -> None:
        hidden = self._engine.prefill(prompts, first_slot=0)
        self._slots = {prompt: slot for slot, prompt in enumerate(prompts)}
        self._after_prompts = [hidden[slot, len(prompt) - 1].clone() for slot, prompt in enumerate(prompts)]

    def _read_responses(self, batch: Sequence[ScoreRequest], slots: np.ndarray) -> torch.Tensor:
        """Hidden states after each response token, [rows, longest, hidden]."""
        longest = max(map(_num_read, batch))
        token_ids = np.zeros((len(batch), longest), dtype=np.int64)
        for row, request in enumerate(batch):
            token_ids[row, : _num_read(request)] = request.response_ids[: _num_read(request)]
        layout = RowLayout(slots, np.array([len(request.prompt_ids) for request in batch]), self._engine.device)
        pieces = [self._after_prompts[0].new_empty(len(batch), 0, self._after_prompts[0].shape[0])]
        for start in range(0, longest, _QUERY_TOKENS):
            read = np.full(len(batch), start)
            pieces.append(self._engine.advance(layout, read, token_ids[:, start : start + _QUERY_TOKENS]))
        return torch.cat(pieces, dim=1)


def _num_read(request: ScoreRequest) -> int:
    """Response tokens that must be read: those before the last requested position."""
    return max(request.positions, default=0)


def _batches(requests: Sequence[ScoreRequest], chunk_tokens: int) -> Iterator[list[int]]:
    """Indices of requests to read together: equal prompts side by side, similar lengths near each other, padded size bounded."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        if request.positions:
            groups.setdefault(request.prompt_ids, []).append(index)
    for group in groups.values():
        group.sort(key=lambda index: -_num_read(requests[index]))
    batch: list[int] = []
    size = (0, 0, 0)  # longest prompt, number of prompts, longest response of the batch
    for prompt_ids, group in sorted(groups.items(), key=lambda item: (-_num_read(requests[item[1][0]]), -len(item[0]))):
        for index in group:
            new_prompt = not batch or requests[batch[-1]].prompt_ids != prompt_ids
            grown = (max(size[0], len(prompt_ids)), size[1] + new_prompt, max(size[2], _num_read(requests[index])))
            if batch and max(grown[0] * grown[1], grown[2] * (len(batch) + 1)) > chunk_tokens:
                yield batch
                batch, grown = [], (len(prompt_ids), 1, _num_read(requests[index]))
            batch.append(index)
            size = grown
    if batch:
        yield batch


def _check(request: ScoreRequest, vocab_size: int) -> None:
    if not request.prompt_ids:
        raise ValueError("prompt_ids must hold at least one token, found none")
    outside = [position for position in request.positions if not 0 <= position <= len(request.response_ids)]
    if outside:
        raise ValueError(f"positions must be between 0 and the response's length {len(request.response_ids)}, got {outside[0]}")
    unknown = [token for token in (*request.prompt_ids, *request.response_ids) if not 0 <= token < vocab_size]
    if unknown:
        raise ValueError(f"token ids must be between 0 and {vocab_size - 1}, got {unknown[0]}")
