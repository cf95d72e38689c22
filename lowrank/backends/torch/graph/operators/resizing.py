"""Images and positions of another size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, Refusal, ints

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def _resize(
    node: NodeFacts, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """One axis after the other, each number from the ones around its place."""
    along = [int(axis) % x.dim() for axis in node.get("axes", range(x.dim()))]
    if sizes is not None and sizes.numel():
        targets = ints(sizes)
        factors = [target / x.shape[axis] for target, axis in zip(targets, along, strict=True)]
    else:
        assert scales is not None
        factors = [float(number) for number in scales.tolist()]
        targets = [math.floor(x.shape[axis] * factor) for axis, factor in zip(along, factors, strict=True)]
    for axis, target, factor in zip(along, targets, factors, strict=True):
        if target != x.shape[axis] or factor != 1.0:
            x = _along(node, x, axis, target, factor)
    return x


def _upsample(node: NodeFacts, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """What operator sets until 9 have in the place of Resize."""
    factors = node.get("scales", ()) if scales is None else scales.tolist()
    for axis, factor in enumerate(factors):
        if factor != 1.0:
            x = _along(node, x, axis, math.floor(x.shape[axis] * factor), factor)
    return x


def _along(node: NodeFacts, x: Tensor, axis: int, target: int, factor: float) -> Tensor:
    """One axis brought to another size."""
    size = x.shape[axis]
    places = _places(node, size, target, factor).to(x.device)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return x.index_select(axis, _nearest(node, places).clamp(0, size - 1))
    first = places.floor()
    shape = [-1 if each == axis else 1 for each in range(x.dim())]
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for shift, weight in _weights(node, places - first):
        picked = x.index_select(axis, (first.long() + shift).clamp(0, size - 1))
        total = total + picked * weight.to(x.dtype).reshape(shape)
    return total


def _places(node: NodeFacts, size: int, target: int, factor: float) -> Tensor:
    """Where each number of the new axis is on the old one."""
    places = torch.arange(target, dtype=torch.float64)
    mode = "asymmetric" if node.op == "Upsample" or node.opset < 11 else _coordinates(node)
    if mode == "asymmetric":
        return places / factor
    if mode == "align_corners":
        # The size before it is rounded.
        wide = size * factor - 1
        return places * (size - 1) / wide if target > 1 else places * 0
    if mode == "pytorch_half_pixel" and target <= 1:
        return places * 0
    return (places + 0.5) / factor - 0.5


def _coordinates(node: NodeFacts) -> str:
    return node.get("coordinate_transformation_mode", "half_pixel")


def _nearest(node: NodeFacts, places: Tensor) -> Tensor:
    mode = "floor" if node.op == "Upsample" or node.opset < 11 else node.get("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        return places.floor().long()
    if mode == "ceil":
        return places.ceil().long()
    down = mode == "round_prefer_floor"
    return ((places - 0.5).ceil() if down else (places + 0.5).floor()).long()


def _weights(node: NodeFacts, rest: Tensor) -> list[tuple[int, Tensor]]:
    """How far the numbers around a place are from the one before it, and how much each counts."""
    if node.get("mode") in ("linear", "bilinear"):
        return [(0, 1 - rest), (1, rest)]
    a = float(node.get("cubic_coeff_a", -0.75))

    def near(t: Tensor) -> Tensor:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Tensor) -> Tensor:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return [(-1, far(rest + 1)), (0, near(rest)), (1, near(1 - rest)), (2, far(2 - rest))]


def refuses_resize(node: NodeFacts) -> str | None:
    """Settings that exporters of models rarely write."""
    if node.op == "Resize" and node.opset >= 11 and _coordinates(node) not in COORDINATES:
        return f"has the coordinates {_coordinates(node)}"
    if node.get("antialias", 0) or node.get("exclude_outside", 0):
        return "leaves numbers outside out, or smooths first"
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keeps the ratio of its sides"
    return None


RESIZING: dict[str, Operator] = {"Resize": _resize, "Upsample": _upsample}
RESIZING_REFUSALS: dict[str, Refusal] = {"Resize": refuses_resize, "Upsample": refuses_resize}
