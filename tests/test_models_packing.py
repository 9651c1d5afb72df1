"""Packed linear layers compute what the plain ones compute, alone and joined, whatever the order in which they are asked."""

import copy

import pytest
import torch

from opdscope.models.transformers.packing import pack_linears


class _Attention(torch.nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(256, 512, bias=bias)
        self.k_proj = torch.nn.Linear(256, 256, bias=bias)
        self.v_proj = torch.nn.Linear(256, 256)
        self.o_proj = torch.nn.Linear(256, 256, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_compute_what_plain_layers_compute(bias: bool) -> None:
    torch.manual_seed(0)
    plain = _Attention(bias=bias)
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    first, second = torch.randn(5, 1, 256), torch.randn(3, 2, 256)
    names = ("v_proj", "q_proj", "q_proj", "o_proj", "k_proj", "q_proj")
    with torch.inference_mode():
        for inputs in (first, second, first):
            for name in names:
                torch.testing.assert_close(getattr(packed, name)(inputs), getattr(plain, name)(inputs))
