"""Operators that pick numbers by their places, or put them there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, ints, wrapped

REDUCED = {"mul": "prod", "max": "amax", "min": "amin"}
"""What torch calls the ways in which several numbers for one place become one."""


def _gather(node: NodeFacts, x: Tensor, indices: Tensor) -> Tensor:
    axis = int(node.get("axis", 0)) % x.dim()
    picked = x.index_select(axis, wrapped(indices, x.shape[axis]).reshape(-1))
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _gather_elements(node: NodeFacts, x: Tensor, indices: Tensor) -> Tensor:
    axis = int(node.get("axis", 0))
    return x.gather(axis, wrapped(indices, x.shape[axis]))


def _gather_nd(node: NodeFacts, x: Tensor, indices: Tensor) -> Tensor:
    """The last axis of the indices holds a place along each of some axes, after those of the batch."""
    shared, depth = int(node.get("batch_dims", 0)), indices.shape[-1]
    batch = math.prod(x.shape[:shared])
    places = indices.long().reshape(batch, math.prod(indices.shape[shared:-1]), depth)
    rows = torch.arange(batch, device=x.device)[:, None]
    picked = x.reshape(batch, *x.shape[shared:])[(rows, *places.unbind(-1))]
    return picked.reshape(indices.shape[:-1] + x.shape[shared + depth :])


def _scatter_nd(node: NodeFacts, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    row = torch.zeros(math.prod(indices.shape[:-1]), dtype=torch.int64, device=x.device)
    for axis, places in enumerate(indices.reshape(-1, depth).unbind(-1)):
        row = row * x.shape[axis] + wrapped(places, x.shape[axis])
    flat = x.reshape(math.prod(x.shape[:depth]), math.prod(x.shape[depth:]))
    given = updates.reshape(len(row), flat.shape[1])
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return flat.index_copy(0, row, given).reshape(x.shape)
    if reduction == "add":
        return flat.index_add(0, row, given).reshape(x.shape)
    return flat.scatter_reduce(0, row[:, None].expand_as(given), given, REDUCED[reduction]).reshape(x.shape)


def _scatter_elements(node: NodeFacts, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = int(node.get("axis", 0))
    places = wrapped(indices, x.shape[axis])
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, updates)
    if reduction == "add":
        return x.scatter_add(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCED[reduction])


def _top_k(node: NodeFacts, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of equal numbers the first one comes first."""
    axis = int(node.get("axis", -1))
    number = int(node.get("k")) if count is None else ints(count)[0]
    values, places = torch.sort(x, dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, number), places.narrow(axis, 0, number)


def _one_hot(node: NodeFacts, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    (size,), axis = ints(depth), int(node.get("axis", -1))
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    shape = [size if place == axis else 1 for place in range(indices.dim() + 1)]
    places = torch.arange(size, device=indices.device).reshape(shape)
    off, on = values.unbind()
    return torch.where(wrapped(indices, size).unsqueeze(axis) == places, on, off)


def _non_zero(node: NodeFacts, x: Tensor) -> Tensor:
    return x.nonzero().T.contiguous()


INDEXING: dict[str, Operator] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
