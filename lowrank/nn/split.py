"""SplitLinear: a fused projection of query, key and value as three layers, which can be factored one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.nn.linear import linear_of, parts_of

FUSED = re.compile(r"^(c_attn|Wqkv|qkv)$")
"""Names under which models hold all queries, then all keys, then all values in one layer."""


class SplitLinear(nn.Module):
    """What a linear layer three times as wide as its input gives, from `query`, `key` and `value`.

    While a model is exported and none of the three has been replaced they are one product again.

    Example:
        >>> dense = nn.Linear(4, 12)
        >>> x = torch.ones(2, 4)
        >>> torch.allclose(SplitLinear(dense)(x), dense(x), atol=1e-6)
        True
    """

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        weight, bias = dense.weight, getattr(dense, "bias", None)
        assert isinstance(weight, Tensor)
        self.transposed = type(dense) is not nn.Linear
        parts = parts_of(weight, self.transposed)
        biases = (None,) * 3 if not isinstance(bias, Tensor) else parts_of(bias)
        self.query, self.key, self.value = (linear_of(w, b) for w, b in zip(parts, biases, strict=True))
        self.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side."""
        if torch.compiler.is_exporting() and all(type(part) is nn.Linear for part in self.children()):
            parts = [part for part in self.children() if isinstance(part, nn.Linear)]
            biases: list[Tensor] = [part.bias for part in parts]
            weights: list[Tensor] = [part.weight for part in parts]
            return functional.linear(x, torch.cat(weights), torch.cat(biases) if biases[0] is not None else None)
        return torch.cat([self.query(x), self.key(x), self.value(x)], -1)

    @property
    def weight(self) -> Tensor:
        """The fused weight, as the layer that was split stored it."""
        # Of a part in few numbers it is no parameter.
        weights: list[Any] = [part.weight for part in self.children()]
        stacked = torch.cat(weights)
        return stacked.T if self.transposed else stacked


def split_fused_(root: nn.Module, where: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Put a `SplitLinear` in the place of every fused projection under a module.

    Args:
        root: changed in place.
        where: whether a submodule of this name is.

    Returns:
        The names of what was replaced.
    """
    splits: dict[int, SplitLinear] = {}
    names: list[str] = []
    for name, module in list(root.named_modules(remove_duplicate=False)):
        parent, _, child = name.rpartition(".")
        weight = getattr(module, "weight", None)
        fused = FUSED.match(child) and where(name)
        if not fused or not isinstance(weight, nn.Parameter) or weight.dim() != 2:
            continue
        plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        outputs, inputs = weight.shape if type(module) is nn.Linear else weight.shape[::-1]
        if not plain or outputs != 3 * inputs:
            continue
        if id(module) not in splits:
            splits[id(module)] = SplitLinear(module)
        root.get_submodule(parent)._modules[child] = splits[id(module)]
        names.append(name)
    return names
