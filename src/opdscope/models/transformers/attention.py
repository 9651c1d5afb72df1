"""Attention of many rows to one copy of a shared prefix: the function that `transformers` models call, and its arithmetic.

A row attends to the first `length` tokens of its trunk and to its own suffix. The two parts are computed apart, the trunk's for all of its
rows in one matrix product, and joined by their log-sum-exp, which gives the exact softmax over both (as in cascade inference). Scores,
softmax and sums are float32 whatever the type of the model.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from opdscope.errors import ModelError

ATTENTION_NAME = "opdscope_shared_prefix"

_LEAST_FUSED_QUERIES = 32  # with fewer queries of a head, the fused kernel loses to three plain calls

# What scaled_dot_product_attention runs on a CPU; the public function does not return the log-sum-exp.
_fused_attention: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class AttentionPass(Protocol):
    """One forward pass of the model over new tokens: knows where their keys and values go and what they attend to."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Store keys and values [batch, kv_heads, tokens, dim]; return the attention's output [batch, tokens, heads, dim]."""
        ...


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prefix: AttentionPass | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function: torch's own where no pass is given, else what the pass says.

    Args:
        module: The attention module; `layer_idx` and `config` are read.
        query: [batch, heads, tokens, dim], rotated.
        key: [batch, kv_heads, tokens, dim], rotated.
        value: [batch, kv_heads, tokens, dim].
        attention_mask: Used by the ordinary path only.
        scaling: Factor of the scores; None for 1/sqrt(dim).
        shared_prefix: Handed through the model's forward as a keyword argument.
        **kwargs: What else the model passes.

    Returns:
        Output [batch, tokens, heads, dim] and no attention weights.

    Raises:
        ModelError: If the model attends in a way that is not computed here: sliding window, soft cap, attention sinks, position bias.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    _refuse_unsupported(module, kwargs)
    return shared_prefix.attend(module.layer_idx, query, key, value, scaling or query.shape[-1] ** -0.5), None


def _refuse_unsupported(module: Any, kwargs: dict[str, Any]) -> None:
    window = kwargs.get("sliding_window")
    if window is not None and window < getattr(module.config, "max_position_embeddings", window + 1):
        found = f"a sliding window of {window} tokens"
    else:
        names = {"softcap": "a soft cap on its scores", "s_aux": "attention sinks", "position_bias": "a position bias"}
        found = next((text for key, text in names.items() if kwargs.get(key) is not None), None)
        if found is None:
            return
    raise ModelError(
        f"The model type {module.config.model_type!r} attends with {found}, which the shared-prefix attention does not compute. Use a "
        "model with full causal attention (Llama, Qwen2, Qwen3, SmolLM and others)."
    )


AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)  # for the ordinary path; a pass brings its own masks


def partial_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over one part of the keys, with what is needed to join it with other parts.

    Args:
        query: [batch, kv_heads, queries, dim], float32, scaled.
        key: [batch, kv_heads, keys, dim], float32; finite also where masked.
        value: [batch, kv_heads, keys, dim], float32; finite also where masked.
        mask: Added to the scores, 0 or -inf for keys that a query may not see; [batch, 1, queries, keys], where all but the last axis may
            be 1 long for all alike. None if all are seen. Each query must see at least one.

    Returns:
        Output [batch, kv_heads, queries, dim] and log-sum-exp of the scores [batch, kv_heads, queries, 1].
    """
    if query.device.type == "cpu" and query.shape[2] >= _LEAST_FUSED_QUERIES and query.shape[3] == value.shape[3]:
        output, log_total = _fused_attention(query, key, value, 0.0, False, attn_mask=mask, scale=1.0)
        return output, log_total[..., None]
    scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        scores.view(*query.shape[:3], -1).add_(mask)
    top = scores.amax(dim=-1, keepdim=True)
    scores.sub_(top).exp_()
    total = scores.sum(dim=-1, keepdim=True)
    output = torch.bmm(scores, value.flatten(0, 1)).div_(total)
    return output.view(*query.shape[:3], -1), top.add_(total.log_()).view(*query.shape[:3], 1)


def join(first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Softmax attention over the union of two parts, each as (output [..., dim], log-sum-exp [..., 1])."""
    weight = torch.sigmoid(first[1] - second[1])
    return torch.lerp(second[0], first[0], weight)
