"""Which modules apply a matrix, how they store it, and what takes their place.

A new layer type is one registration of `form_of` and a case of `empty_replacement`. Anything not registered comes back
as a Skip.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.torch.normalize import choose_experts_
from lowrank.backends.torch.tensors import as_stored
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import LayerKind, View, Weight
from lowrank.nn import LowRankConv, LowRankEmbedding, LowRankLinear, LowRankStack, SpatialConv
from lowrank.nn.embedding import embedding_reason

LowRank = LowRankLinear | LowRankConv | SpatialConv | LowRankEmbedding | LowRankStack


@dataclass(frozen=True, slots=True)
class Form:
    """How a module stores its `weight` and applies it."""

    view: View
    kind: LayerKind
    spatial: View | None = None


@singledispatch
def form_of(module: nn.Module) -> Form | str:
    """How a module applies its `weight`, or why it cannot be replaced."""
    return f"{type(module).__name__} is not a layer type that can be factored"


@form_of.register
def _(module: nn.Linear) -> Form | str:
    if type(module).forward is not nn.Linear.forward:
        return f"{type(module).__name__} is not a layer type that can be factored"
    return Form(View("rows cols"), "linear")


@form_of.register
def _(module: nn.Embedding) -> Form | str:
    return embedding_reason(module) or Form(View("cols rows"), "lookup")


@form_of.register(nn.Conv1d)
@form_of.register(nn.Conv2d)
def _(module: nn.Conv1d | nn.Conv2d) -> Form | str:
    if type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward):
        return f"{type(module).__name__} is not a layer type that can be factored"
    shape = module.weight.shape
    square = module.groups == 1 and min(module.kernel_size) > 1
    spatial = square and isinstance(module, nn.Conv2d)
    return Form(View.of_conv(shape, module.groups), "conv", View.of_spatial(shape) if spatial else None)


def dense_layer(root: nn.Module, layer: str, kind: str, stored: str) -> tuple[nn.Module, Form, Tensor]:
    """What a layer is before it is replaced: the module, how it applies its tensor, and the tensor.

    Args:
        root: the whole model.
        layer: the module's name; for experts, the parameter's.
        kind: how the layer applies its weight.
        stored: the weight's pattern, which for experts nothing but a run would tell.
    """
    if kind == "experts":
        module = root.get_submodule(layer.rpartition(".")[0])
        return module, Form(View(stored, "stack rows cols"), "experts"), root.get_parameter(layer)
    module = root.get_submodule(layer)
    form, tensor = form_of(module), module.weight
    assert not isinstance(form, str) and isinstance(tensor, Tensor)
    return module, form, tensor


def register_optional_layers() -> None:
    """Register the layers of packages that are imported already; others cannot occur in a model."""
    package = sys.modules.get("transformers.pytorch_utils")
    if package is not None:
        form_of.register(package.Conv1D, lambda module: Form(View("cols rows"), "linear"))


def empty_replacement(module: nn.Module, structure: str, weight: Tensor, form: Form, rank: int) -> LowRank:
    """The layer that holds factors of this rank in the place of a dense one, before they are filled in.

    Args:
        module: the dense layer; for experts, the module that holds the tensor.
        structure: `two_factor` or `spatial`.
        weight: the dense tensor, for its shape, type and device.
        form: how the layer stores and applies it.
        rank: the inner width.
    """
    like = {"dtype": weight.dtype, "device": weight.device}
    _, rows, cols = form.view.shape(weight.shape)
    new: LowRank
    if form.kind == "experts":
        stack, a, b = weight.shape
        return LowRankStack(stack, a, b, rank, **like)
    if isinstance(module, nn.Embedding):
        new = LowRankEmbedding(module, rank, **like)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        kind: Any = SpatialConv if structure == "spatial" else LowRankConv
        new = kind(module, rank, bias=False, **like)
    else:
        new = LowRankLinear(cols, rows, rank, bias=False, **like)
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return new.train(module.training)


def fill_(new: LowRank, weight: Weight, replacement: Replacement, dense: Tensor) -> None:
    """Put factors into an empty replacement, in the dtype of the dense weight."""
    left, right = replacement.factors.left, replacement.factors.right
    if any(layer.kind == "lookup" for layer in weight.layers) or weight.view.stored == "stack cols rows":
        # Held as they are stored, so that a table and the head that is tied to it share them.
        left, right = right.swapaxes(-1, -2), left.swapaxes(-1, -2)
    pair = (as_stored(weight.name, left, dense), as_stored(weight.name, right, dense))
    with torch.no_grad():
        if isinstance(new, LowRankConv | SpatialConv):
            new.fill_(*pair)
            return
        holders = (new.left, new.right) if isinstance(new, LowRankStack) else (new.left.weight, new.right.weight)
        for holder, tensor in zip(holders, pair, strict=True):
            holder.copy_(tensor)


def tie(new: LowRank, first: LowRank) -> None:
    """Share the factors of two layers of one weight."""
    assert not isinstance(new, LowRankStack) and not isinstance(first, LowRankStack)
    new.left.weight, new.right.weight = first.left.weight, first.right.weight


def put(root: nn.Module, name: str, new: nn.Module) -> None:
    """Set the submodule called `name`, or the parameter that becomes one."""
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    parent._parameters.pop(child, None)
    parent._modules[child] = new
    if isinstance(new, LowRankStack):
        # Fused kernels would take the whole stack, and so the product of the factors.
        choose_experts_(root, "eager")
