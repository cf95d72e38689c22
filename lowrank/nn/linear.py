"""LowRankLinear: two thin linear layers in place of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.nn.product import ProductTensor, factors_of


class LowRankLinear(nn.Linear):
    """`y = left(right(x)) + bias`; the factors are plain `nn.Linear`s, the bias comes last.

    To outside code it is a linear layer: PEFT puts adapters on it. Its state is `right.weight` (rank x inputs),
    `left.weight` (outputs x rank) and, if there is one, `bias` under the name that it had. `weight` is the product;
    what its `data` is set to is taken into the factors, whose rank becomes what that needs. `like` are `dtype` and
    `device`, as of any layer of torch.

    Example:
        >>> layer = LowRankLinear(8, 6, rank=2)
        >>> layer(torch.zeros(3, 8)).shape, layer.weight.shape
        (torch.Size([3, 6]), torch.Size([6, 8]))
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True, **like: Any) -> None:
        # Not that of nn.Linear, which would make a dense weight.
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.right = nn.Linear(in_features, rank, bias=False, **like)
        self.left = nn.Linear(rank, out_features, bias=False, **like)
        # Not the bias of `left`: a bias inside a linear layer exports as Gemm for two-dimensional inputs, and the
        # graph is to have two MatMuls and an Add whatever the input.
        self.bias = nn.Parameter(torch.zeros(out_features, **like)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """Apply `right`, then `left`, then the bias."""
        y = self.left(self.right(input))
        return y if self.bias is None else y + self.bias

    def reset_parameters(self) -> None:
        """Draw the factors anew."""
        self.right.reset_parameters()
        self.left.reset_parameters()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense matrix that the factors stand for, outputs x inputs."""
        return ProductTensor.of(self.left.weight @ self.right.weight, self._take)

    def _take(self, matrix: Tensor) -> None:
        """Become the factors of another matrix; what shared a factor with this layer keeps the old one."""
        for part, factor in zip((self.left, self.right), factors_of(matrix, self.rank), strict=True):
            part.weight = nn.Parameter(factor.contiguous(), part.weight.requires_grad)
            part.out_features, part.in_features = factor.shape
        self.rank = self.left.in_features

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with a copy of these numbers; frozen ones stay frozen."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = parameter_of(weight)
    if bias is not None:
        layer.bias = parameter_of(bias)
    return layer


def parameter_of(tensor: Tensor) -> nn.Parameter:
    """A parameter with a copy of these numbers, frozen if they are."""
    return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)


def parts_of(tensor: Tensor, transposed: bool = False) -> tuple[Tensor, ...]:
    """Query, key and value of what holds all three, side by side if it is transposed."""
    with torch.enable_grad():
        return (tensor.T if transposed else tensor).chunk(3)
