"""Operators that bring numbers to one scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, Refusal


def _layer_norm(node: NodeFacts, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
    axis, eps = int(node.get("axis", -1)) % x.dim(), float(node.get("epsilon", 1e-5))
    shape = x.shape[axis:]
    if node.outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, eps)
    along = tuple(range(axis, x.dim()))
    mean = x.mean(along, keepdim=True)
    spread = ((x - mean).square().mean(along, keepdim=True) + eps).rsqrt()
    scaled = (x - mean) * spread * scale
    return (scaled if bias is None else scaled + bias), mean, spread


def _rms_norm(node: NodeFacts, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, ...]:
    axis, eps = int(node.get("axis", -1)) % x.dim(), float(node.get("epsilon", 1e-5))
    spread = (x.square().mean(tuple(range(axis, x.dim())), keepdim=True) + eps).rsqrt()
    return (x * spread * scale, spread) if node.outputs > 1 else x * spread * scale


def _by_channel(numbers: Tensor, like: Tensor) -> Tensor:
    """One number for each channel, which is the second axis."""
    return numbers.reshape(-1, *[1] * (like.dim() - 2))


def _batch_norm(node: NodeFacts, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale * (variance + float(node.get("epsilon", 1e-5))).rsqrt()
    return x * _by_channel(factor, x) + _by_channel(bias - mean * factor, x)


def refuses_batch_norm(node: NodeFacts) -> str | None:
    """A graph that was exported for training."""
    return "is in training mode" if node.get("training_mode", 0) else None


def _instance_norm(node: NodeFacts, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    made = functional.group_norm(x, x.shape[1], eps=float(node.get("epsilon", 1e-5)))
    return made * _by_channel(scale, x) + _by_channel(bias, x)


def _group_norm(node: NodeFacts, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Until operator set 20 there is one scale for each group, later one for each channel."""
    groups = int(node.get("num_groups"))
    if node.opset < 21:
        scale, bias = (numbers.repeat_interleave(x.shape[1] // groups) for numbers in (scale, bias))
    made = functional.group_norm(x, groups, eps=float(node.get("epsilon", 1e-5)))
    return made * _by_channel(scale, x) + _by_channel(bias, x)


def _lp_norm(node: NodeFacts, x: Tensor) -> Tensor:
    axis = int(node.get("axis", -1))
    length = torch.linalg.vector_norm(x, int(node.get("p", 2)), axis, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


NORMALIZATION: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
}
NORMALIZATION_REFUSALS: dict[str, Refusal] = {"BatchNormalization": refuses_batch_norm}
