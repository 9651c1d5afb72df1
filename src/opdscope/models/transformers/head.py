"""The output head: hidden states to logits, with what some model classes do to logits afterwards."""

from typing import Any

import torch
from torch.nn.functional import linear

from opdscope.models.transformers.language_model import LanguageModel


class OutputHead:
    """Logits over the tokenizer's vocabulary in a chosen precision; padded output rows are cut before the product."""

    def __init__(self, language_model: LanguageModel, dtype: torch.dtype) -> None:
        """Take the head of a model.

        Args:
            language_model: The model.
            dtype: Type in which the product is computed. If it is not the model's, the weights are copied once,
                vocab_size · hidden_size · itemsize bytes.
        """
        head = language_model.model.get_output_embeddings()
        config: Any = language_model.model.config.get_text_config()
        self._weight = head.weight[: language_model.vocab_size].to(dtype)
        self._bias = None if head.bias is None else head.bias[: language_model.vocab_size].to(dtype)
        # Granite divides its logits, Cohere multiplies them, Gemma 2 bends them; names as in their configurations
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self._weight.shape[1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [rows, vocab_size] of hidden states [rows, hidden]."""
        logits = linear(hidden.to(self._weight.dtype), self._weight, self._bias).float()
        if self._scale != 1.0:
            logits *= self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits
