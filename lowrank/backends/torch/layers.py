"""Which modules apply a matrix, how they store it, and what takes their place.

A new layer type is one registration of `form_of`. Anything not registered comes back as a Skip.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.torch.normalize import choose_experts_
from lowrank.backends.torch.tensors import as_stored
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.truncation.spatial import SpatialFactors
from lowrank.core.weight import LayerKind, View, Weight
from lowrank.nn import (
    LowRankConv,
    LowRankEmbedding,
    LowRankLinear,
    LowRankStack,
    NarrowLinear,
    PivotedLinear,
    SpatialConv,
)
from lowrank.nn.embedding import embedding_reason

LeftRight = LowRankLinear | LowRankConv | SpatialConv | LowRankEmbedding | PivotedLinear
"""Replacements whose factors are the layers `left` and `right`."""

LowRank = LeftRight | LowRankStack | NarrowLinear | nn.Linear
"""What a replacement can be; plain where a layer only got narrower."""


def empty_linear(module: nn.Module, record: Mapping[str, Any], shape: tuple[int, int], **like: Any) -> LowRank:
    """What takes the place of a product and a bias, in each of the structures that such a layer can have."""
    rows, cols = shape
    rank, bias = record["rank"], record["bias"]
    if "ordered" in record:
        heads = None if record["ordered"] else record.get("heads", 1)
        return PivotedLinear(
            cols, rows, rank, bias, record.get("side", "output"), heads, record.get("last", False), **like
        )
    if "attention" in record:
        # What is around it works at a smaller width.
        around = record["attention"]
        inside = around["count"] * around["width"]
        rows, cols = (inside, cols) if around["side"] == "outputs" else (rows, inside)
    if record.get("spread") or record.get("picks"):
        narrow = (int(record["shape"][0]), int(record["shape"][1]))
        return NarrowLinear(cols, rows, narrow, record["spread"], record["picks"], bias, **like)
    if "shape" in record:
        return nn.Linear(record["shape"][1], record["shape"][0], bias, **like)
    return LowRankLinear(cols, rows, rank, bias=bias, **like)


def _empty_table(module: nn.Module, record: Mapping[str, Any], shape: tuple[int, int], **like: Any) -> LowRank:
    assert isinstance(module, nn.Embedding)
    return LowRankEmbedding(module, record["rank"], **like)


def _empty_conv(module: nn.Module, record: Mapping[str, Any], shape: tuple[int, int], **like: Any) -> LowRank:
    kind: Any = SpatialConv if structure_named(record["structure"]).factors is SpatialFactors else LowRankConv
    return kind(module, record["rank"], bias=record["bias"], **like)


@dataclass(frozen=True, slots=True)
class Form:
    """How a module stores its `weight` and applies it, and what takes its place."""

    view: View
    kind: LayerKind
    spatial: View | None = None
    empty: Callable[..., LowRank] = empty_linear
    """Makes the layer in its place, before its factors are filled in, from the module, the record (see `record_of`),
    (outputs, inputs), and the type and device of its numbers by name."""


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
    return embedding_reason(module) or Form(View("cols rows"), "lookup", empty=_empty_table)


@form_of.register(nn.Conv1d)
@form_of.register(nn.Conv2d)
def _(module: nn.Conv1d | nn.Conv2d) -> Form | str:
    if type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward):
        return f"{type(module).__name__} is not a layer type that can be factored"
    shape = module.weight.shape
    square = module.groups == 1 and min(module.kernel_size) > 1
    spatial = square and isinstance(module, nn.Conv2d)
    return Form(View.of_conv(shape, module.groups), "conv", View.of_spatial(shape) if spatial else None, _empty_conv)


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


def record_of(weight: Weight, replacement: Replacement, bias: bool) -> dict[str, Any]:
    """What it takes to put a replacement's layers in their places again, as JSON can hold it.

    Args:
        weight: what is replaced.
        replacement: by what.
        bias: whether the layers have a bias then.
    """
    factors = replacement.factors
    record: dict[str, Any] = {
        "structure": replacement.structure,
        "layers": [layer.name for layer in weight.layers],
        "kind": weight.layers[0].kind if weight.layers else "linear",
        "rank": factors.rank,
        "stored": weight.view.stored,
        "bias": bias,
    }
    if isinstance(factors, Pivoted):
        record |= {
            "ordered": factors.order is not None,
            "side": factors.side,
            "heads": factors.heads,
            "last": factors.last,
        }
    elif isinstance(factors, Narrow):
        record["shape"] = list(factors.matrix.shape)
        record["spread"] = factors.padded and factors.outputs is not None
        record["picks"] = factors.padded and factors.inputs is not None
    for name, order in (("rows", replacement.rows), ("cols", replacement.cols)):
        if order is not None:
            record[name] = order.tolist()
    return record


def empty_replacement(module: nn.Module, record: Mapping[str, Any], weight: Tensor, form: Form) -> LowRank:
    """The layer that a record tells of in the place of a dense one, before it is filled in.

    Args:
        module: the dense layer; for experts, the module that holds the tensor.
        record: see `record_of`.
        weight: the dense tensor, for its shape, type and device.
        form: how the layer stores and applies it.
    """
    rank, like = int(record["rank"]), {"dtype": weight.dtype, "device": weight.device}
    _, rows, cols = form.view.shape(weight.shape)
    if form.kind == "experts":
        stack, a, b = weight.shape
        return LowRankStack(stack, a, b, rank, **like)
    return form.empty(module, {**record, "rank": rank}, (rows, cols), **like).train(module.training)


def fill_(new: LowRank, weight: Weight, replacement: Replacement, dense: nn.Module, stored: Tensor) -> None:
    """Put a replacement's numbers into the empty layer for it, in the dtype of the dense weight.

    Args:
        new: the layer.
        weight: what is replaced.
        replacement: by what.
        dense: the layer that was there, for its bias.
        stored: its tensor.
    """
    factors = replacement.factors
    plain = new.linear if isinstance(new, NarrowLinear) else new
    fill_bias_(new, weight, replacement, dense, stored)
    with torch.no_grad():
        if isinstance(factors, Narrow):
            assert isinstance(plain, nn.Linear)
            plain.weight.copy_(as_stored(weight.name, factors.matrix, stored))
            if isinstance(new, NarrowLinear):
                within = factors.within(weight, new.out_features, new.in_features)
                if new.spread is not None and within.outputs is not None:
                    zero = factors.matrix.shape[0]
                    new.spread.copy_(torch.from_numpy(np.where(within.outputs < 0, zero, within.outputs)))
                if new.picks is not None and within.inputs is not None:
                    new.picks.copy_(torch.from_numpy(within.inputs))
            return
        if isinstance(factors, Pivoted) and factors.order is not None:
            assert isinstance(new, PivotedLinear) and new.order is not None
            new.order.copy_(torch.from_numpy(factors.order))
        left, right = factors.left, factors.right
        if weight.is_table or weight.view.stored == "stack cols rows":
            # Held as they are stored, so that a table and the head that is tied to it share them.
            left, right = right.swapaxes(-1, -2), left.swapaxes(-1, -2)
        pair = (as_stored(weight.name, left, stored), as_stored(weight.name, right, stored))
        if isinstance(new, LowRankConv | SpatialConv):
            new.fill_(*pair)
            return
        assert isinstance(new, LeftRight | LowRankStack)
        holders = (new.left, new.right) if isinstance(new, LowRankStack) else (new.left.weight, new.right.weight)
        for place, tensor in zip(holders, pair, strict=True):
            place.copy_(tensor)


def fill_bias_(new: LowRank, weight: Weight, replacement: Replacement, dense: nn.Module, stored: Tensor) -> None:
    """Put the replacement's bias into the empty layer for it, or that of the dense layer in its place; see `fill_`."""
    before = getattr(dense, "bias", None)
    bias = getattr(new.linear if isinstance(new, NarrowLinear) else new, "bias", None)
    if not isinstance(bias, nn.Parameter):
        return
    with torch.no_grad():
        if replacement.bias is not None:
            bias.copy_(as_stored(weight.name, replacement.bias, stored))
        elif isinstance(before, Tensor):
            bias.copy_(before)
            bias.requires_grad_(before.requires_grad)


def has_bias(module: nn.Module, replacement: Replacement) -> bool:
    """Whether the layer in the place of a module has a bias."""
    if replacement.bias is not None:
        return replacement.bias.size > 0
    return isinstance(getattr(module, "bias", None), Tensor)


def tie(new: LowRank, first: LowRank) -> None:
    """Share the factors of two layers of one weight, and the order of their channels."""
    assert isinstance(new, LeftRight) and isinstance(first, LeftRight)
    new.left.weight, new.right.weight = first.left.weight, first.right.weight
    if isinstance(new, PivotedLinear) and isinstance(first, PivotedLinear):
        new.order = first.order


def put(root: nn.Module, name: str, new: nn.Module) -> None:
    """Set the submodule called `name`, or the parameter that becomes one."""
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    parent._parameters.pop(child, None)
    parent._modules[child] = new
    if isinstance(new, LowRankStack):
        # Fused kernels would take the whole stack, and so the product of the factors.
        choose_experts_(root, "eager")
