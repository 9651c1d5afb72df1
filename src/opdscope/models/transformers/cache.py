"""Keys and values of trunks (one copy each) and of rows' own suffixes, in buffers that are written in place."""

from collections.abc import Iterable

import torch


class KeyValueBuffer:
    """Keys and values of one layer for a number of sequences, [sequences, kv_heads, tokens, dim] in the model's type; grows by doubling.

    Buffers start as zeros and are never handed back uninitialised, because a hidden key has weight 0 and 0 · NaN would be NaN.
    """

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def reserve(self, num_sequences: int, num_tokens: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make room, keeping what is stored, and return the buffers of keys and values.

        Args:
            num_sequences: Sequences to be held.
            num_tokens: Tokens of each to be held.
            key: Any key tensor [_, kv_heads, _, dim] of the layer, for heads, dimension, type and device.
            value: Likewise for values.
        """
        if self.keys is None or self.values is None:
            self.keys, self.values = key.new_zeros(0), value.new_zeros(0)
            capacity = (num_sequences, num_tokens)
        else:
            held = self.keys.shape[0], self.keys.shape[2]
            if num_sequences <= held[0] and num_tokens <= held[1]:
                return self.keys, self.values
            capacity = tuple(
                old if wanted <= old else max(wanted, 2 * old) for wanted, old in zip((num_sequences, num_tokens), held, strict=True)
            )
        self.keys, self.values = _grown(self.keys, capacity, key), _grown(self.values, capacity, value)
        return self.keys, self.values

    def move(self, source: torch.Tensor, target: torch.Tensor, num_tokens: int) -> None:
        """Copy the first tokens of sequences `source` over sequences `target`; the two must not overlap."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[target, :, :num_tokens] = buffer[source, :, :num_tokens]


class SharedPrefixCache:
    """All layers' trunk and suffix buffers. Slots are numbered from 0; who sits in which is the caller's knowledge."""

    def __init__(self, num_layers: int, num_kv_heads: int) -> None:
        self.num_kv_heads = num_kv_heads
        self.trunks = [KeyValueBuffer() for _ in range(num_layers)]
        """Prefixes, one copy each, whoever attends to them."""
        self.suffixes = [KeyValueBuffer() for _ in range(num_layers)]
        """What each row has read since its prefix."""
        self._widened: dict[str, torch.Tensor] = {}

    def widen(self, held: torch.Tensor, purpose: str) -> torch.Tensor:
        """Stored keys or values in float32: themselves, or a copy in memory that the next call for the same purpose overwrites.

        Memory that stays is read from the processor's cache by the products that follow; at narrow types the whole costs less than
        reading a float32 store.
        """
        if held.dtype == torch.float32:
            return held
        if purpose not in self._widened or self._widened[purpose].numel() < held.numel():
            self._widened[purpose] = torch.empty(2 * held.numel(), dtype=torch.float32, device=held.device)
        return self._widened[purpose][: held.numel()].view(held.shape).copy_(held)

    def move_trunks(self, source: Iterable[int], target: Iterable[int], num_tokens: int) -> None:
        """Copy trunks in slots `source` to slots `target`."""
        _move(self.trunks, source, target, num_tokens)

    def move_suffixes(self, source: Iterable[int], target: Iterable[int], num_tokens: int) -> None:
        """Copy suffixes in slots `source` to slots `target`."""
        _move(self.suffixes, source, target, num_tokens)


def _move(buffers: list[KeyValueBuffer], source: Iterable[int], target: Iterable[int], num_tokens: int) -> None:
    sources, targets = torch.tensor(list(source), dtype=torch.long), torch.tensor(list(target), dtype=torch.long)
    if sources.numel() and num_tokens:
        for buffer in buffers:
            buffer.move(sources, targets, num_tokens)


def _grown(buffer: torch.Tensor, capacity: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    grown = like.new_zeros((capacity[0], like.shape[1], capacity[1], like.shape[3]))
    if buffer.numel():
        grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return grown
