"""Layers with pivots as layers without them, for numbers of few bits."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import without_pivots
from lowrank.nn import LowRankLinear, PivotedLinear


def without_pivoted_layers(module: nn.Module) -> nn.Module:
    """The same function without pivoted factors, as a copy; the module itself if it has none."""
    if not any(isinstance(layer, PivotedLinear) for layer in module.modules()):
        return module
    if isinstance(module, PivotedLinear):
        return _without(module)
    module = copy.deepcopy(module)
    made: dict[nn.Module, nn.Linear] = {}
    # A layer under several names stays one.
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if isinstance(layer, PivotedLinear):
            parent, _, name = path.rpartition(".")
            if layer not in made:
                made[layer] = _without(layer)
            setattr(module.get_submodule(parent), name, made[layer])
    return module


def _without(layer: PivotedLinear) -> nn.Linear:
    """Two factors or one matrix, whichever is smaller."""
    like = {"dtype": layer.left.weight.dtype, "device": layer.left.weight.device}
    rows, cols, bias = layer.out_features, layer.in_features, layer.bias is not None
    numbers = without_pivots(copy.deepcopy(layer).double().weight.detach().cpu().numpy(), layer.rank)
    if isinstance(numbers, Factors):
        new = LowRankLinear(cols, rows, layer.rank, bias=bias, **like)
        _fill(new.left.weight, numbers.left)
        _fill(new.right.weight, numbers.right)
    else:
        new = nn.Linear(cols, rows, bias=bias, **like)
        _fill(new.weight, numbers)
    if layer.bias is not None:
        new.bias = layer.bias
    return new.train(layer.training)


def _fill(parameter: torch.Tensor, numbers: NDArray[np.floating]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
