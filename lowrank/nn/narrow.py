"""NarrowLinear: a linear layer with fewer channels inside than those around it expect."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowLinear(nn.Module):
    """A smaller linear layer that keeps the widths of the one it stands for.

    `spread` says for each output which of the smaller layer's it is, or, if it is their number, that it is zero.
    `picks` are the inputs that are read. Either may be absent. So heads of attention get narrower without a change to
    the code around them; an exported graph can drop the zeros. Where that code can take fewer channels, `between` gives
    the layer for them.

    Its state is `linear.weight`, `linear.bias` if there is one, and the two index tensors.

    Example:
        >>> layer = NarrowLinear(8, 6, (2, 8), spread=True)
        >>> layer(torch.zeros(3, 8)).shape, layer.weight.shape
        (torch.Size([3, 6]), torch.Size([6, 8]))
    """

    spread: Tensor | None
    picks: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        shape: tuple[int, int],
        spread: bool = False,
        picks: bool = False,
        bias: bool = False,
        **like: Any,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.linear = nn.Linear(shape[1], shape[0], bias, **like)
        zeros = torch.full((out_features,), shape[0], device=like.get("device"))
        self.register_buffer("spread", zeros if spread else None)
        self.register_buffer("picks", torch.arange(shape[1], device=like.get("device")) if picks else None)

    def forward(self, x: Tensor) -> Tensor:
        """Pick inputs, apply the smaller layer, put zeros between its outputs."""
        y = self.linear(x if self.picks is None else x.index_select(-1, self.picks))
        return y if self.spread is None else functional.pad(y, (0, 1)).index_select(-1, self.spread)

    @classmethod
    def around(cls, linear: nn.Module) -> NarrowLinear:
        """A smaller linear layer that puts in and leaves out nothing yet: see `between`."""
        assert isinstance(linear, nn.Linear)
        layer = cls(linear.in_features, linear.out_features, (linear.out_features, linear.in_features))
        layer.linear = linear
        return layer

    def between(
        self, in_features: int, out_features: int, spread: Tensor | None, picks: Tensor | None
    ) -> NarrowLinear | nn.Linear:
        """The same smaller layer between other widths; nothing but that layer where no zeros are put in or left out.

        Args:
            in_features: of what it reads.
            out_features: of what it gives.
            spread: which of its outputs each of them is; None if they are its own.
            picks: which inputs are read; None if all are.
        """
        if spread is None and picks is None:
            return self.linear
        layer = copy.copy(self)
        layer.in_features, layer.out_features = in_features, out_features
        layer._modules = dict(self._modules)
        layer._buffers = {"spread": spread, "picks": picks}
        return layer

    @property
    def bias(self) -> Tensor | None:
        """As wide as the outputs."""
        if self.linear.bias is None or self.spread is None:
            return self.linear.bias
        return functional.pad(self.linear.bias, (0, 1)).index_select(-1, self.spread)

    @property
    def weight(self) -> Tensor:
        """The dense matrix that it stands for, outputs x inputs."""
        wide = self.linear.weight
        if self.picks is not None:
            wide = torch.zeros_like(wide[:, :1]).repeat(1, self.in_features).index_copy(1, self.picks, wide)
        return wide if self.spread is None else functional.pad(wide, (0, 0, 0, 1)).index_select(0, self.spread)

    def extra_repr(self) -> str:
        """The widths outside."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
