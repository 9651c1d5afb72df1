"""The two forward passes: prefill writes trunks, continue reads new tokens of rows after their trunk and suffix."""

from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from opdscope.models.transformers.attention import join, partial_attention
from opdscope.models.transformers.cache import SharedPrefixCache


class PrefillPass:
    """Reads trunks from their first token and stores them in slots `first_slot`, `first_slot` + 1, …; padding is on the right."""

    def __init__(self, cache: SharedPrefixCache, first_slot: int) -> None:
        self._cache = cache
        self._first_slot = first_slot

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """See :class:`AttentionPass`. Causal, so the padding on the right changes nothing before it."""
        num_trunks, num_tokens = key.shape[0], key.shape[2]
        slots = slice(self._first_slot, self._first_slot + num_trunks)
        keys, values = self._cache.trunks[layer].reserve(slots.stop, num_tokens, key, value)
        keys[slots, :, :num_tokens] = key
        values[slots, :, :num_tokens] = value
        grouped = query.shape[1] != key.shape[1]
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return output.transpose(1, 2)


class RowLayout:
    """Which row attends to how much of which trunk; changes only when rows come and go.

    The queries of a trunk's rows are laid side by side in a grid [num_trunks, rows_per_trunk], padded with row 0, whose results are
    dropped. Where the rows already lie so, nothing is moved.
    """

    def __init__(self, trunk_of_row: np.ndarray, lengths: np.ndarray, device: torch.device) -> None:
        """Lay out rows.

        Args:
            trunk_of_row: Trunk slot of each row, [rows].
            lengths: How many tokens of its trunk each row sees, [rows], at least 1.
            device: Where the model is.
        """
        num_rows = len(trunk_of_row)
        counts = np.bincount(trunk_of_row)
        self.lengths = lengths
        self.num_trunks, self.rows_per_trunk, self.num_tokens = len(counts), int(counts.max()), int(lengths.max())
        order = np.argsort(trunk_of_row, kind="stable")
        starts = np.cumsum(counts) - counts
        place = np.empty(num_rows, dtype=np.int64)
        place[order] = np.arange(num_rows) - starts[trunk_of_row[order]]
        place += trunk_of_row * self.rows_per_trunk
        grid = np.zeros(self.num_trunks * self.rows_per_trunk, dtype=np.int64)
        grid[place] = np.arange(num_rows)
        in_order = len(grid) == num_rows and bool((place == np.arange(num_rows)).all())
        self.row_of_place = None if in_order else torch.from_numpy(grid).to(device)
        self.place_of_row = None if in_order else torch.from_numpy(place).to(device)
        self.mask = self._mask(lengths[grid].reshape(self.num_trunks, -1), device) if (lengths != self.num_tokens).any() else None
        """What the rows' queries may not see, [num_trunks, 1, rows_per_trunk, 1, num_tokens], where rows may be 1 for all alike."""

    def _mask(self, lengths: np.ndarray, device: torch.device) -> torch.Tensor:
        if (lengths == lengths[:, :1]).all():
            lengths = lengths[:, :1]
        hidden = torch.from_numpy(np.arange(self.num_tokens) >= lengths[:, None, :, None, None]).to(device)
        return _additive(hidden)


class ContinuePass:
    """Reads new tokens of every row after its trunk and its suffix, and appends them to the suffix."""

    def __init__(self, cache: SharedPrefixCache, layout: RowLayout, suffix_lengths: np.ndarray, num_new: int, device: torch.device) -> None:
        """Plan the pass.

        Args:
            cache: Holds the trunks; row r has suffix slot r.
            layout: Which row attends to what.
            suffix_lengths: Tokens that each row has read since its prefix, [rows].
            num_new: Tokens that each row reads now.
            device: Where the model is.
        """
        self._cache, self._layout = cache, layout
        places = suffix_lengths[:, None] + np.arange(num_new)
        self.positions = torch.from_numpy(layout.lengths[:, None] + places).to(device)
        """Rotary positions, [rows, num_new]."""
        self._window = int(suffix_lengths.max()) + num_new
        self._places = torch.from_numpy(places).to(device)
        self._common_start = int(suffix_lengths[0]) if (suffix_lengths == suffix_lengths[0]).all() else None
        self._own_mask: torch.Tensor | None = None
        if num_new > 1 or self._common_start is None:
            different = self._places if self._common_start is None else self._places[:1]
            self._own_mask = _additive(torch.arange(self._window, device=device) > different[:, None, None, :, None])
        self._flat_places: torch.Tensor | None = None
        self._masks: tuple[torch.Tensor | None, torch.Tensor | None] | None = None

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """See :class:`AttentionPass`."""
        num_rows, num_heads, num_new, dim = query.shape
        keys, values = self._append(layer, key, value)
        query = (query.float() * scaling).contiguous().view(num_rows, key.shape[1], -1, dim)
        trunk_mask, own_mask = self._masks_of_queries(query.shape[2], num_new)
        own = partial_attention(query, keys, values, own_mask)
        output = join(self._attend_trunk(layer, query, trunk_mask), own)
        return output.view(num_rows, num_heads, num_new, -1).transpose(1, 2).to(value.dtype)

    def _masks_of_queries(self, num_queries: int, num_new: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Masks of trunk and suffix for `num_queries` = heads per key head · new tokens; equal for all layers, so made once."""
        if self._masks is None:
            trunk, own = self._layout.mask, self._own_mask
            if own is not None:
                own = own.expand(-1, -1, num_queries // num_new, -1, -1).flatten(2, 3)
            if trunk is not None:
                trunk = (trunk if trunk.shape[2] == 1 else trunk.expand(-1, -1, -1, num_queries, -1)).flatten(2, 3)
            self._masks = trunk, own
        return self._masks

    def _append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values; return all that the rows have, float32, [rows, kv_heads, window, dim]."""
        num_rows, num_new = key.shape[0], key.shape[2]
        buffers = self._cache.suffixes[layer].reserve(num_rows, self._window, key, value)
        if self._common_start is not None:
            window = slice(self._common_start, self._common_start + num_new)
            for buffer, new in zip(buffers, (key, value), strict=True):
                buffer[:num_rows, :, window] = new
        else:
            index = self._flat_index(key.shape[1], buffers[0].shape[2])
            for buffer, new in zip(buffers, (key, value), strict=True):
                buffer.view(-1, buffer.shape[3]).index_copy_(0, index, new.reshape(-1, buffer.shape[3]))
        keys, values = (buffer[:num_rows, :, : self._window] for buffer in buffers)
        return self._cache.widen(keys, "own keys"), self._cache.widen(values, "own values")

    def _flat_index(self, num_kv_heads: int, capacity: int) -> torch.Tensor:
        """Where new tokens go in a suffix buffer seen as [rows · kv_heads · capacity, dim]; equal for all layers, so made once."""
        if self._flat_places is None:
            num_rows = self._places.shape[0]
            sequence = torch.arange(num_rows * num_kv_heads, device=self._places.device).view(num_rows, num_kv_heads, 1)
            self._flat_places = (sequence * capacity + self._places[:, None, :]).flatten()
        return self._flat_places

    def _attend_trunk(self, layer: int, query: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The trunks' part for queries [rows, kv_heads, queries, dim]: output likewise, and log-sum-exp [rows, kv_heads, queries, 1]."""
        layout, (num_kv_heads, num_queries, dim) = self._layout, query.shape[1:]
        query = query if layout.row_of_place is None else query.index_select(0, layout.row_of_place)
        query = query.view(layout.num_trunks, layout.rows_per_trunk, num_kv_heads, num_queries, dim).transpose(1, 2)
        keys, values = self._trunk("keys", layer), self._trunk("values", layer)
        output, log_total = partial_attention(query.flatten(2, 3), keys, values, mask)
        return self._to_rows(output), self._to_rows(log_total)

    def _trunk(self, which: Literal["keys", "values"], layer: int) -> torch.Tensor:
        """Keys or values of the trunks, float32, [num_trunks, kv_heads, num_tokens, dim]."""
        held: Any = getattr(self._cache.trunks[layer], which)
        return self._cache.widen(held[: self._layout.num_trunks, :, : self._layout.num_tokens], f"trunk {which}")

    def _to_rows(self, part: torch.Tensor) -> torch.Tensor:
        """From the grid [num_trunks, kv_heads, rows_per_trunk · queries, …] back to [rows, kv_heads, queries, …]."""
        part = part.unflatten(2, (self._layout.rows_per_trunk, -1)).transpose(1, 2).flatten(0, 1)
        return part if self._layout.place_of_row is None else part.index_select(0, self._layout.place_of_row)


def _additive(hidden: torch.Tensor) -> torch.Tensor:
    """What is added to scores: -inf where hidden, else 0."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
