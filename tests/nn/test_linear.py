"""LowRankLinear: two factors that outside code can treat as a linear layer."""

from __future__ import annotations

import pytest
import torch

from lowrank.nn import LowRankLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8)])
def test_applies_the_product(bias: bool, shape: tuple[int, ...]) -> None:
    layer = LowRankLinear(8, 6, rank=3, bias=bias, dtype=torch.float64)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), expected)
    assert (layer.in_features, layer.out_features, layer.weight.dtype) == (8, 6, torch.float64)


def test_weight_is_read_only_and_not_in_the_state() -> None:
    layer = LowRankLinear(8, 6, rank=3)
    assert set(layer.state_dict()) == {"left.weight", "right.weight", "bias"}
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(6, 8)


def test_is_trainable() -> None:
    layer = LowRankLinear(8, 6, rank=3)
    layer(torch.randn(4, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
