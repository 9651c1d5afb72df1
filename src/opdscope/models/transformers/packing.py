"""Weights laid out once in the order in which the CPU's matrix kernels read them, instead of anew at every product.

Decoding multiplies a few dozen rows with every weight of the model, so the rearranging costs as much as the arithmetic: for the output head
of a 50,000-token vocabulary and 64 rows, a packed product takes half the time in float32 and three quarters in bfloat16.
"""

from typing import Any

import torch
from torch.nn.functional import linear

_ROWS = 64  # the number of rows that the layout is tuned for; other numbers lose a few per cent
_LEAST_WEIGHTS = 1 << 16  # below this the call costs more than the arithmetic

# The operators behind torch's own compiler on CPUs; they have no public name.
_mkldnn: Any = torch.ops.mkldnn


class PackedLinear(torch.nn.Module):
    """A linear layer for inference on a CPU; its weight can be multiplied with and nothing else."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Pack a weight [out, in]; the given tensors are not kept."""
        super().__init__()
        self._weight = _mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Product with inputs [..., in]: [..., out]."""
        return _mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


class PlainLinear(torch.nn.Module):
    """A linear layer whose weight is shared with whoever gave it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Keep a weight [out, in]."""
        super().__init__()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Product with inputs [..., in]: [..., out]."""
        return linear(inputs, self._weight, self._bias)


def fast_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear | PlainLinear:
    """The faster layer for inference: packed where this device, type and size gain by it."""
    return PackedLinear(weight, bias) if _gains(weight) else PlainLinear(weight, bias)


def pack_linears(body: torch.nn.Module) -> None:
    """Replace, in place, each linear layer inside a module by its packed form where that is faster; the plain weights are let go."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and _gains(child.weight):
                setattr(parent, name, PackedLinear(child.weight, child.bias))


def _gains(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < _LEAST_WEIGHTS or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _mkldnn._is_mkldnn_bf16_supported())
