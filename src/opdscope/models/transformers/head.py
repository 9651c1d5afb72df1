"""The output head: hidden states to logits, with what some model classes do to logits afterwards."""

from typing import Any

import torch

from opdscope.models.transformers.packing import fast_linear


class OutputHead:
    """Logits over the tokenizer's vocabulary in a chosen precision; padded output rows are cut before the product."""

    def __init__(self, model: Any, vocab_size: int, dtype: torch.dtype) -> None:
        """Take the head of a model.

        Args:
            model: The `transformers` model.
            vocab_size: Output rows that stand for tokens; those beyond are padding.
            dtype: Type in which the product is computed. On a CPU, or if it is not the model's, the weights are copied once,
                vocab_size · hidden_size · itemsize bytes.
        """
        head = model.get_output_embeddings()
        config: Any = model.config.get_text_config()
        weight, bias = head.weight[:vocab_size].to(dtype), None if head.bias is None else head.bias[:vocab_size].to(dtype)
        self._dtype, self._hidden_size, self._product = dtype, int(weight.shape[1]), fast_linear(weight, bias)
        # Granite divides its logits, Cohere multiplies them, Gemma 2 bends them; names as in their configurations
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self._hidden_size

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab_size] of hidden states [rows, hidden], in the head's precision or, where the model alters them, float32."""
        logits = self._product(hidden.to(self._dtype))
        if self._scale != 1.0:
            logits = logits.float() * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits.float() / self._softcap) * self._softcap
        return logits
