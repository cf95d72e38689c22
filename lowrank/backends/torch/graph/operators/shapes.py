"""Operators that move numbers about, or make tensors of some shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, Refusal, given_ints, ints


def _reshape(node: NodeFacts, x: Tensor, shape: Tensor) -> Tensor:
    """A size of 0 stays what it was, unless the node says that it means 0."""
    sizes = ints(shape)
    if not node.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: NodeFacts, x: Tensor) -> Tensor:
    axis = int(node.get("axis", 1))
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(node: NodeFacts, x: Tensor) -> Tensor:
    return x.permute(list(node.get("perm") or range(x.dim())[::-1]))


def _concat(node: NodeFacts, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, int(node.get("axis", 1)))


def _split(node: NodeFacts, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of the sizes that are given, or of one size with what is left in the last part."""
    axis = int(node.get("axis", 0))
    given = given_ints(node, "split", sizes)
    if given is None:
        parts = int(node.get("num_outputs", node.outputs))
        whole, size = x.shape[axis], -(-x.shape[axis] // parts)
        given = [min(size, max(whole - size * part, 0)) for part in range(parts)]
    return torch.split(x, given, axis)


def _slice(
    node: NodeFacts,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Until operator set 9 all of it is given as attributes."""
    first, last = given_ints(node, "starts", starts), given_ints(node, "ends", ends)
    assert first is not None and last is not None
    along = given_ints(node, "axes", axes) or list(range(len(first)))
    by = given_ints(node, "steps", steps) or [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _unsqueeze(node: NodeFacts, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = given_ints(node, "axes", axes) or []
    total = x.dim() + len(along)
    for axis in sorted(axis % total for axis in along):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: NodeFacts, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = given_ints(node, "axes", axes)
    return x.squeeze() if along is None else x.squeeze(tuple(along))


def _shape(node: NodeFacts, x: Tensor) -> Tensor:
    sizes = list(x.shape)[int(node.get("start", 0)) : node.get("end")]
    return torch.tensor(sizes, dtype=torch.int64, device=x.device)


def _size(node: NodeFacts, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def _expand(node: NodeFacts, x: Tensor, shape: Tensor) -> Tensor:
    """Either of the two shapes may have ones where the other has more."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def _tile(node: NodeFacts, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(ints(repeats))


def _range(node: NodeFacts, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _constant_of_shape(node: NodeFacts, shape: Tensor) -> Tensor:
    """Zeros, or another number, which the node has as a tensor of one number."""
    value = node.get("value")
    filling = torch.zeros(1) if value is None else value
    return filling.reshape(()).to(shape.device).expand(ints(shape)).clone()


def _trilu(node: NodeFacts, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    shift = 0 if diagonal is None else int(diagonal)
    return x.triu(shift) if node.get("upper", 1) else x.tril(shift)


def _pad(
    node: NodeFacts, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Until operator set 10 the widths and the number are attributes. Widths below zero cut."""
    widths = given_ints(node, "pads", pads) or []
    along = list(range(x.dim())) if axes is None else ints(axes)
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(along):
        before[axis % x.dim()], after[axis % x.dim()] = widths[place], widths[place + len(along)]
    mode = node.get("mode", "constant")
    if mode == "constant":
        number = node.get("value", 0.0) if value is None else value.item()
        flat = [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]
        return functional.pad(x, flat, value=number)
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            places = torch.arange(-low, x.shape[axis] + high, device=x.device)
            x = x.index_select(axis, _mirrored(places, x.shape[axis], mode))
    return x


def _mirrored(places: Tensor, size: int, mode: str) -> Tensor:
    """Which number stands at a place outside an axis."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(2 * (size - 1), 1)
    within = places.remainder(period)
    return torch.where(within >= size, period - within, within)


def refuses_pad(node: NodeFacts) -> str | None:
    """A way of padding that is not one of the standard's."""
    mode = node.get("mode", "constant")
    return None if mode in ("constant", "edge", "reflect", "wrap") else f"pads in the mode {mode}"


def _depth_to_space(node: NodeFacts, x: Tensor) -> Tensor:
    batch, depth, height, width = x.shape
    block = int(node.get("blocksize"))
    if node.get("mode", "DCR") == "DCR":
        parts = x.reshape(batch, block, block, depth // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, depth // block**2, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, depth // block**2, height * block, width * block)


def _space_to_depth(node: NodeFacts, x: Tensor) -> Tensor:
    batch, depth, height, width = x.shape
    block = int(node.get("blocksize"))
    parts = x.reshape(batch, depth, height // block, block, width // block, block)
    parts = parts.permute(0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else parts.permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, depth * block**2, height // block, width // block)


SHAPES: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
SHAPE_REFUSALS: dict[str, Refusal] = {"Pad": refuses_pad}
