"""PivotedLinear: some outputs are computed, the others follow from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.core.truncation.pivoted import Side
from lowrank.errors import LowRankError
from lowrank.nn.product import ProductTensor


class PivotedLinear(nn.Linear):
    """Two factors in rank^2 fewer numbers: `z = right(x)`, `y = [z, left(z)]`, plus the bias.

    On the side of the inputs it is `y = left(x_p + right(x_rest))`. Its state is `right.weight`, `left.weight`, if
    there is one `bias`, and `order` (for each output which of `[z, left(z)]` it is). With a number of `heads` there is
    no order: neighbours have agreed on one in which the pivots are the first channels of each head, or the last ones.

    Example:
        >>> PivotedLinear(8, 6, rank=2)(torch.zeros(3, 8)).shape
        torch.Size([3, 6])
        >>> layer = PivotedLinear(8, 6, rank=2, side="input", heads=2, last=True)
        >>> layer(torch.zeros(3, 8)).shape, layer.weight.shape, layer.right.weight.shape
        (torch.Size([3, 6]), torch.Size([6, 8]), torch.Size([2, 6]))
    """

    order: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        side: Side = "output",
        heads: int | None = None,
        last: bool = False,
        **like: Any,
    ) -> None:
        # Not that of nn.Linear, which would make a dense weight.
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.side, self.heads, self.last = side, heads or 1, last
        output = side == "output"
        self.right = nn.Linear(in_features if output else in_features - rank, rank, bias=False, **like)
        self.left = nn.Linear(rank, out_features - rank if output else out_features, bias=False, **like)
        self.register_buffer("order", torch.arange(out_features, device=like.get("device")) if heads is None else None)
        self.bias = nn.Parameter(torch.zeros(out_features, **like)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """Compute the pivots, and from them the outputs."""
        if self.side == "output":
            z = self.right(input)
            y = self._joined(z, self.left(z), -1)
        else:
            pivots, others = self._parted(input)
            y = self.left(pivots + self.right(others))
        return y if self.bias is None else y + self.bias

    def _joined(self, pivots: Tensor, others: Tensor, axis: int) -> Tensor:
        """Pivots and what follows from them, where each belongs."""
        if self.order is not None:
            return torch.cat([pivots, others], axis).index_select(axis, self.order)
        parts = [others, pivots] if self.last else [pivots, others]
        if self.heads == 1:
            return torch.cat(parts, axis)
        within = axis + (axis >= 0)
        return torch.cat([p.unflatten(axis, (self.heads, -1)) for p in parts], within).flatten(
            *((-2, -1) if axis == -1 else (axis, axis + 1))
        )

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that are pivots, and the others."""
        width, each = self.in_features // self.heads, self.rank // self.heads
        sizes = [width - each, each] if self.last else [each, width - each]
        by_head = x if self.heads == 1 else x.unflatten(-1, (self.heads, width))
        parts = by_head.split(sizes, -1)
        first, second = parts if self.heads == 1 else [part.flatten(-2) for part in parts]
        return (second, first) if self.last else (first, second)

    def reset_parameters(self) -> None:
        """Draw the factors anew."""
        self.right.reset_parameters()
        self.left.reset_parameters()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense matrix that the factors stand for, outputs x inputs."""
        product = self.left.weight @ self.right.weight
        parts = (self.right.weight if self.side == "output" else self.left.weight, product)
        return ProductTensor.of(self._joined(*parts, 0 if self.side == "output" else 1), self._take)

    def _take(self, matrix: Tensor) -> None:
        """Refuse: with pivots that were chosen for one matrix another one has no such factors."""
        raise LowRankError(
            "a layer with pivots cannot become the factors of another matrix: put the adapter on its two factors "
            "(target_modules 'left' and 'right'), which merge as any linear layer does, keep it unmerged, or compress "
            "with --structures two_factor"
        )

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, side={self.side}"
