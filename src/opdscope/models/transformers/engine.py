"""One model with its shared-prefix cache: prefill trunks, advance rows, turn hidden states into logits."""

from collections.abc import Sequence

import numpy as np
import torch

from opdscope.models.transformers.cache import SharedPrefixCache
from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.passes import ContinuePass, PrefillPass, RowLayout


class SharedPrefixEngine:
    """Runs the model's body (all but the output head) over trunks and rows. Each sampler call or scorer call has one of its own."""

    def __init__(self, language_model: LanguageModel) -> None:
        config = language_model.model.config.get_text_config()
        num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.cache = SharedPrefixCache(config.num_hidden_layers, num_kv_heads)
        self.device = language_model.device
        self._body = language_model.model.base_model
        # transformers returns a four-axis mask as it is instead of building one; the passes bring their own and ignore it
        self._no_mask = torch.zeros(1, 1, 1, 1, device=self.device)

    def prefill(self, trunks: Sequence[Sequence[int]], first_slot: int) -> torch.Tensor:
        """Read trunks into consecutive slots.

        Args:
            trunks: Token ids, each at least one.
            first_slot: Slot of the first; what lay in these slots is overwritten.

        Returns:
            Last hidden states after the final norm, [trunks, longest, hidden]; arbitrary where a trunk is shorter.
        """
        token_ids = np.zeros((len(trunks), max(map(len, trunks))), dtype=np.int64)
        for row, trunk in enumerate(trunks):
            token_ids[row, : len(trunk)] = trunk
        positions = torch.arange(token_ids.shape[1], device=self.device).expand(token_ids.shape)
        return self._run(token_ids, positions, PrefillPass(self.cache, first_slot))

    def advance(self, layout: RowLayout, suffix_lengths: np.ndarray, token_ids: np.ndarray) -> torch.Tensor:
        """Read new tokens of every row and append them to its suffix.

        Args:
            layout: Which row attends to what.
            suffix_lengths: Tokens in each row's suffix so far, [rows].
            token_ids: New tokens, [rows, new]. Padding on the right is harmless if the caller drops its results and later overwrites it.

        Returns:
            Last hidden states after the final norm, [rows, new, hidden].
        """
        step = ContinuePass(self.cache, layout, suffix_lengths, token_ids.shape[1], self.device)
        return self._run(token_ids, step.positions, step)

    def _run(self, token_ids: np.ndarray, positions: torch.Tensor, shared_prefix: PrefillPass | ContinuePass) -> torch.Tensor:
        output = self._body(
            input_ids=torch.from_numpy(token_ids).to(self.device),
            position_ids=positions,
            attention_mask=self._no_mask,
            use_cache=False,
            shared_prefix=shared_prefix,
        )
        return output.last_hidden_state
