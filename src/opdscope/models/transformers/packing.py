"""Weights laid out once in the order in which the CPU's matrix kernels read them, instead of anew at every product.

Decoding multiplies a few dozen rows with every weight of the model, so the rearranging costs as much as the arithmetic: for the output head
of a 50,000-token vocabulary and 64 rows, a packed product takes half the time in float32 and three quarters in bfloat16.
"""

from typing import Any

import torch
from torch.nn.functional import linear

_ROWS = 64  # the number of rows that the layout is tuned for; other numbers lose a few per cent
_LEAST_WEIGHTS = 1 << 16  # below this the call costs more than the arithmetic
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of one module that models apply to the same tensor

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


class _JointProduct:
    """Several layers of the same input as one product: one call instead of two or three, and long enough to keep the kernel busy."""

    def __init__(self, layers: list[torch.nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases: list[torch.Tensor | None] = [layer.bias for layer in layers]  # torch declares it as never None
        zeros = (layer.weight.new_zeros(layer.out_features) for layer in layers)
        filled = [zero if bias is None else bias.detach() for bias, zero in zip(biases, zeros, strict=True)]
        bias = None if all(bias is None for bias in biases) else torch.cat(filled)
        self._product, self._sizes = PackedLinear(weight, bias), [layer.out_features for layer in layers]
        self._inputs: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def take(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        """Output of one of the layers; computed for all when the first is asked for, and let go when all are taken."""
        if inputs is not self._inputs or index not in self._outputs:
            self._inputs, self._outputs = inputs, dict(enumerate(self._product(inputs).split(self._sizes, dim=-1)))
        output = self._outputs.pop(index)
        if not self._outputs:
            self._inputs = None
        return output


class _JointLinear(torch.nn.Module):
    """One layer of a joint product, in the place of the layer it stands for."""

    def __init__(self, product: _JointProduct, index: int) -> None:
        super().__init__()
        self._product, self._index = product, index

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._product.take(self._index, inputs)


def pack_linears(body: torch.nn.Module) -> None:
    """Replace, in place, each linear layer inside a module by its packed form where that is faster; the plain weights are let go.

    Layers that read the same input (queries, keys and values; gate and up) share one product.
    """
    for parent in list(body.modules()):
        layers = {name: child for name, child in parent.named_children() if type(child) is torch.nn.Linear and _gains(child.weight)}
        for names in _SAME_INPUT:
            if layers.keys() >= set(names):
                product = _JointProduct([layers.pop(name) for name in names])
                for index, name in enumerate(names):
                    setattr(parent, name, _JointLinear(product, index))
        for name, layer in layers.items():
            setattr(parent, name, PackedLinear(layer.weight, layer.bias))


def _gains(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < _LEAST_WEIGHTS or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _mkldnn._is_mkldnn_bf16_supported())
