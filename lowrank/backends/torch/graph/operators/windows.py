"""Operators that go over an axis in windows: convolutions and pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, Refusal

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
MEAN_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie along each spatial axis."""

    sizes: list[int]
    steps: list[int]
    dilations: list[int]
    before: list[int]
    """What is added in front of each axis."""
    after: list[int]

    @property
    def spans(self) -> list[int]:
        """From the first number of a window to its last."""
        return [(size - 1) * dilation + 1 for size, dilation in zip(self.sizes, self.dilations, strict=True)]

    def around(self) -> list[int]:
        """What is added at all ends, as torch wants it: the last axis first."""
        pairs = reversed(list(zip(self.before, self.after, strict=True)))
        return [width for pair in pairs for width in pair]

    def beyond(self, shape: Sequence[int]) -> list[int]:
        """What the last windows need beyond the padding where their number is rounded up; a window that would begin
        there is left out."""
        extra: list[int] = []
        for size, span, step, low, high in zip(shape[2:], self.spans, self.steps, self.before, self.after, strict=True):
            count = -(-(size + low + high - span) // step) + 1
            count -= (count - 1) * step >= size + low
            extra.append(max((count - 1) * step + span - (size + low + high), 0))
        return [width for each in reversed(extra) for width in (0, each)]


def _windows(node: NodeFacts, shape: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Those of a node on an input of some shape."""
    axes = len(shape) - 2
    steps = [int(step) for step in node.get("strides", [1] * axes)]
    dilations = [int(each) for each in node.get("dilations", [1] * axes)]
    pads = [int(width) for width in node.get("pads", [0] * (2 * axes))]
    found = Windows(list(kernel), steps, dilations, pads[:axes], pads[axes:])
    automatic = node.get("auto_pad", "NOTSET")
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return found
    for axis, (size, span, step) in enumerate(zip(shape[2:], found.spans, steps, strict=True)):
        total = max((-(-size // step) - 1) * step + span - size, 0)
        less, more = total // 2, total - total // 2
        found.before[axis], found.after[axis] = (less, more) if automatic == "SAME_UPPER" else (more, less)
    return found


def _conv(node: NodeFacts, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    windows = _windows(node, x.shape, weight.shape[2:])
    padding = windows.before
    if windows.before != windows.after:
        x, padding = functional.pad(x, windows.around()), [0] * len(padding)
    apply = CONVOLUTIONS[x.dim() - 2]
    return apply(x, weight, bias, windows.steps, padding, windows.dilations, int(node.get("group", 1)))


def _conv_transpose(node: NodeFacts, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All that the windows reach, cut to what the node asks for."""
    axes = x.dim() - 2
    steps = [int(step) for step in node.get("strides", [1] * axes)]
    dilations = [int(each) for each in node.get("dilations", [1] * axes)]
    apply = TRANSPOSED[axes]
    whole = apply(x, weight, None, steps, 0, 0, int(node.get("group", 1)), dilations)
    extra = [int(each) for each in node.get("output_padding", [0] * axes)]
    pads = [int(width) for width in node.get("pads", [0] * (2 * axes))]
    automatic, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if wanted is None and automatic.startswith("SAME"):
        wanted = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
    cut: list[int] = []
    for axis in range(axes):
        low, high = pads[axis], pads[axis + axes]
        if wanted is not None:
            total = whole.shape[axis + 2] + extra[axis] - int(wanted[-axes:][axis])
            less, more = total // 2, total - total // 2
            low, high = (less, more) if automatic == "SAME_UPPER" else (more, less)
        cut = [-low, extra[axis] - high, *cut]
    made = functional.pad(whole, cut)
    return made if bias is None else made + bias.reshape(-1, *[1] * axes)


def _max_pool(node: NodeFacts, x: Tensor) -> Tensor:
    windows = _windows(node, x.shape, [int(size) for size in node.get("kernel_shape")])
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    beyond = windows.beyond(x.shape) if node.get("ceil_mode", 0) else []
    x = functional.pad(functional.pad(x, windows.around(), value=lowest), beyond, value=lowest)
    return MAX_POOLS[x.dim() - 2](x, windows.sizes, windows.steps, 0, windows.dilations)


def _average_pool(node: NodeFacts, x: Tensor) -> Tensor:
    """Sums over counts: padding is counted only if the node says so, and what lies beyond it never is."""
    windows = _windows(node, x.shape, [int(size) for size in node.get("kernel_shape")])
    pool = partial(MEAN_POOLS[x.dim() - 2], kernel_size=windows.sizes, stride=windows.steps)
    counted = 1.0 if node.get("count_include_pad", 0) else 0.0
    beyond = windows.beyond(x.shape) if node.get("ceil_mode", 0) else []
    ones = functional.pad(torch.ones_like(x[:1, :1]), windows.around(), value=counted)
    return pool(functional.pad(functional.pad(x, windows.around()), beyond)) / pool(functional.pad(ones, beyond))


def _global_average(node: NodeFacts, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def _global_max(node: NodeFacts, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def refuses_places(node: NodeFacts) -> str | None:
    """A pool that says as well where its numbers were."""
    return "gives the places of what it picks" if node.outputs > 1 else None


def refuses_dilated_mean(node: NodeFacts) -> str | None:
    """Windows with gaps, of which torch has no mean."""
    return "has windows with gaps" if any(each != 1 for each in node.get("dilations", ())) else None


WINDOWS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
}
WINDOW_REFUSALS: dict[str, Refusal] = {"AveragePool": refuses_dilated_mean, "MaxPool": refuses_places}
