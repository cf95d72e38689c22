"""Which modules apply a matrix, how they store it, and what takes their place.

A new layer type is one registration of `view_of`. Anything not registered comes back as a Skip.
"""

from __future__ import annotations

import sys
from functools import singledispatch

import torch
from torch import nn

from lowrank.backends.torch.tensors import as_stored
from lowrank.core.factors import Factors
from lowrank.core.weight import View
from lowrank.nn import LowRankLinear


@singledispatch
def view_of(module: nn.Module) -> View | None:
    """How `module.weight` is stored, if the module multiplies its input by it; None for other modules."""
    return None


@view_of.register
def _(module: nn.Linear) -> View | None:
    return View("rows cols") if type(module).forward is nn.Linear.forward else None


def register_optional_layers() -> None:
    """Register the layers of packages that are imported already; others cannot occur in a model."""
    package = sys.modules.get("transformers.pytorch_utils")
    if package is not None:
        view_of.register(package.Conv1D, lambda module: View("cols rows"))


def reason_against(module: nn.Module, ancestors: list[nn.Module]) -> str:
    """Why a module's tensor cannot be replaced, or an empty string if it can."""
    if any(isinstance(a, nn.MultiheadAttention) for a in ancestors) or isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its tensors directly, without calling a layer"
    if isinstance(module, nn.Embedding):
        return "an embedding: a lookup, not a product"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "a convolution"
    if view_of(module) is None:
        return f"{type(module).__name__} is not a layer type that can be factored"
    return ""


def replacement_for(name: str, module: nn.Module, factors: Factors, weight: torch.Tensor) -> LowRankLinear:
    """The layer that applies the factors, in the dtype and on the device of the dense weight, bias kept."""
    rows, cols = factors.left.shape[0], factors.right.shape[1]
    empty = empty_replacement(module, rows, cols, factors.rank, weight)
    with torch.no_grad():
        empty.left.weight.copy_(as_stored(name, factors.left, weight))
        empty.right.weight.copy_(as_stored(name, factors.right, weight))
    return empty


def empty_replacement(module: nn.Module, rows: int, cols: int, rank: int, weight: torch.Tensor) -> LowRankLinear:
    """The same layer before its factors are filled in."""
    bias = getattr(module, "bias", None)
    new = LowRankLinear(cols, rows, rank, bias=False, dtype=weight.dtype, device=weight.device)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    new.train(module.training)
    return new


def put(root: nn.Module, name: str, new: nn.Module) -> None:
    """Set the submodule called `name`, and keep its parents from bypassing it."""
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    parent._modules[child] = new
    for module in (root, *ancestors_of(root, name)):
        # In evaluation nn.TransformerEncoderLayer hands its weights to a fused kernel, and the stack around it packs
        # padded batches for that kernel. Both then multiply by the dense product instead of the factors.
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def ancestors_of(root: nn.Module, name: str) -> list[nn.Module]:
    """The modules on the way from the root to `name`, without either end."""
    parts = name.split(".")[:-1]
    return [root.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts))]
