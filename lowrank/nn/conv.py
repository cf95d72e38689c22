"""Convolutions as two smaller ones: fewer channels in between, or one way after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d


class _TwoConvs(nn.Module):
    """`left(right(x)) + bias`, with the geometry of the dense layer for whoever asks."""

    left: Conv
    right: Conv

    def __init__(self, like: Conv, rank: int, bias: bool, numbers: dict[str, Any]) -> None:
        super().__init__()
        self.in_channels, self.out_channels = like.in_channels, like.out_channels
        self.kernel_size, self.stride, self.padding = like.kernel_size, like.stride, like.padding
        self.dilation, self.groups, self.padding_mode = like.dilation, like.groups, like.padding_mode
        self.rank = rank
        self.bias = nn.Parameter(torch.zeros(like.out_channels, **numbers)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply `right`, then `left`, then the bias."""
        y = self.left(self.right(x))
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(self.kernel_size))

    def extra_repr(self) -> str:
        """Channels and rank."""
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}"


class LowRankConv(_TwoConvs):
    """A k x k convolution to few channels, then one of 1 x 1: the channel factors of a `Conv1d` or `Conv2d`.

    Groups stay groups: each has `rank` channels of its own in between. The state is `right.weight`
    (groups rank x inputs / groups x k ...), `left.weight` (outputs x rank x 1 ...) and, if there is one, `bias`.

    Example:
        >>> layer = LowRankConv(nn.Conv2d(8, 6, 3, padding=1), rank=2)
        >>> layer(torch.zeros(1, 8, 5, 5)).shape, layer.weight.shape
        (torch.Size([1, 6, 5, 5]), torch.Size([6, 8, 3, 3]))
    """

    def __init__(self, like: Conv, rank: int, bias: bool = True, **numbers: Any) -> None:
        super().__init__(like, rank, bias, numbers)
        kind: Any = nn.Conv1d if isinstance(like, nn.Conv1d) else nn.Conv2d
        own: dict[str, Any] = {"bias": False, **numbers}
        self.right = kind(
            like.in_channels,
            like.groups * rank,
            like.kernel_size,
            like.stride,
            like.padding,
            like.dilation,
            like.groups,
            padding_mode=like.padding_mode,
            **own,
        )
        self.left = kind(like.groups * rank, like.out_channels, 1, groups=like.groups, **own)

    @property
    def weight(self) -> Tensor:
        """The dense kernel that the factors stand for."""
        left = self.left.weight.reshape(self.groups, -1, self.rank)
        right = self.right.weight.reshape(self.groups, self.rank, -1)
        return (left @ right).reshape(self.out_channels, *self.right.weight.shape[1:])

    def fill_(self, left: Tensor, right: Tensor) -> None:
        """Copy factors in.

        Args:
            left: (groups x) outputs / groups x rank.
            right: (groups x) rank x patch.
        """
        with torch.no_grad():
            self.left.weight.copy_(left.reshape(self.left.weight.shape))
            self.right.weight.copy_(right.reshape(self.right.weight.shape))


class SpatialConv(_TwoConvs):
    """A 1 x k convolution, then one of k x 1: the spatial factors of a `Conv2d` with one group.

    The state is `right.weight` (rank x inputs x 1 x k), `left.weight` (outputs x rank x k x 1) and, if there is one,
    `bias` (Jaderberg et al., BMVC 2014, section 2).

    Example:
        >>> layer = SpatialConv(nn.Conv2d(8, 6, 3, padding=1), rank=2)
        >>> layer(torch.zeros(1, 8, 5, 5)).shape, layer.weight.shape
        (torch.Size([1, 6, 5, 5]), torch.Size([6, 8, 3, 3]))
    """

    def __init__(self, like: nn.Conv2d, rank: int, bias: bool = True, **numbers: Any) -> None:
        super().__init__(like, rank, bias, numbers)
        own: dict[str, Any] = {"bias": False, **numbers, "padding_mode": like.padding_mode}
        named = isinstance(like.padding, str)
        padding: Any = (like.padding, like.padding) if named else ((0, like.padding[1]), (like.padding[0], 0))
        (high, wide), (down, along) = like.kernel_size, like.stride
        self.right = nn.Conv2d(like.in_channels, rank, (1, wide), (1, along), padding[0], (1, like.dilation[1]), **own)
        self.left = nn.Conv2d(rank, like.out_channels, (high, 1), (down, 1), padding[1], (like.dilation[0], 1), **own)

    @property
    def weight(self) -> Tensor:
        """The dense kernel that the factors stand for."""
        return torch.einsum("orh,riw->oihw", self.left.weight[..., 0], self.right.weight[:, :, 0])

    def fill_(self, left: Tensor, right: Tensor) -> None:
        """Copy factors in.

        Args:
            left: (outputs kernel rows) x rank.
            right: rank x (inputs kernel columns).
        """
        high, wide = self.kernel_size
        with torch.no_grad():
            self.left.weight.copy_(left.reshape(self.out_channels, high, self.rank).transpose(1, 2).unsqueeze(-1))
            self.right.weight.copy_(right.reshape(self.rank, self.in_channels, 1, wide))
