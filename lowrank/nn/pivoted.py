"""PivotedLinear: some outputs are computed, the others follow from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PivotedLinear(nn.Module):
    """`z = right(x)`, `y = [z, left(z)]` in the order of `order`, plus the bias: rank^2 numbers fewer than two factors.

    Its state is `right.weight` (rank x inputs), `left.weight` ((outputs - rank) x rank), `order` (for each output which
    of `[z, left(z)]` it is; absent where a neighbour takes them as they come) and, if there is one, `bias`.

    Example:
        >>> layer = PivotedLinear(8, 6, rank=2)
        >>> layer(torch.zeros(3, 8)).shape, layer.weight.shape
        (torch.Size([3, 6]), torch.Size([6, 8]))
    """

    order: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        ordered: bool = True,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.right = nn.Linear(in_features, rank, bias=False, dtype=dtype, device=device)
        self.left = nn.Linear(rank, out_features - rank, bias=False, dtype=dtype, device=device)
        self.register_buffer("order", torch.arange(out_features, device=device) if ordered else None)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply `right`, append what follows, put all in order, add the bias."""
        z = self.right(x)
        y = torch.cat([z, self.left(z)], -1)
        if self.order is not None:
            y = y.index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """The dense matrix that the factors stand for, outputs x inputs."""
        rows = torch.cat([self.right.weight, self.left.weight @ self.right.weight])
        return rows if self.order is None else rows[self.order]

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
