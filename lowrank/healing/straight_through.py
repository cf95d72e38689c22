"""Training straight through rounding: a model computes with what its file will hold, and gradients pass as if it did
not (BinaryConnect, Courbariaux and others, 2015)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.backends.torch.hooks import removed_after
from lowrank.core.rounding.formats import Format
from lowrank.core.rounding.ranges import CODES, Range
from lowrank.healing.grids import Grid, Grids
from lowrank.healing.optimizer import Optimizer
from lowrank.nn import LowRankEmbedding
from lowrank.parallel import cores, threads

REFRESHED = 40
"""Steps after which scales are found anew for what the numbers have become; then after twice as many, and so on."""
NEAR = 127
"""The largest code of inputs that have a sign, and a scale for each block."""


class RoundedOptimizer(Optimizer):
    """An optimiser of exact numbers, of which the model only ever sees the rounded ones, to which the gradients belong.

    Args:
        parameters: of the model, by name, rounded.
        rate: see `Optimizer`.
        smallest: see `Optimizer`.
        grids: of those that are rounded.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rate: float, smallest: Mapping[str, float] | None, grids: Grids
    ) -> None:
        self.grids = {name: grid for name, grid in grids.items() if name in parameters}
        self._rounded = {name: parameters[name] for name in self.grids}
        exact = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in self._rounded.items()}
        super().__init__({**parameters, **exact}, rate, smallest)
        self._units: dict[str, Tensor] = {}
        self._steps = 0

    def step(self, share: float) -> None:
        """Change the exact numbers, and give the model the rounded ones."""
        for name, parameter in self._rounded.items():
            self.parameters[name].grad, parameter.grad = parameter.grad, None
        super().step(share)
        with threads(cores()) as pool:
            list(pool.map(self._round, self._rounded))
        self._steps += 1

    def clear(self) -> None:
        """Forget the gradients, those of the model, too."""
        super().clear()
        for parameter in self._rounded.values():
            parameter.grad = None

    def _round(self, name: str) -> None:
        exact, grid = self.parameters[name].detach(), self.grids[name]
        if name not in self._units or is_refreshed(self._steps):
            self._units[name] = grid.tensor(grid.form.units(grid.matrix(exact)), exact)
        with torch.no_grad():
            self._rounded[name].copy_(rounded_to(self._units[name], exact, grid.form))

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Those of `Optimizer`, with the exact numbers and their units."""
        return {
            **super().moments(),
            "exact": {n: self.parameters[n].detach() for n in self.grids},
            "units": self._units,
        }

    def restore(self, moments: Mapping[str, Mapping[str, Tensor]], steps: int, usual: float | None) -> None:
        """Take over what `moments` gave after so many steps, and the usual norm of that time."""
        super().restore(moments, steps, usual)
        self._steps = steps
        for name, exact in moments.get("exact", {}).items():
            self.parameters[name].detach().copy_(exact)
        # None were written before the first step.
        self._units = {name: units.to(self.parameters[name]) for name, units in moments.get("units", {}).items()}


def is_refreshed(steps: int) -> bool:
    """Whether scales are found anew after so many steps: at longer and longer intervals, as numbers change less.

    Example:
        >>> [step for step in range(1000) if is_refreshed(step)]
        [0, 40, 120, 280, 600]
    """
    turns, rest = divmod(steps + REFRESHED, REFRESHED)
    return rest == 0 and turns & (turns - 1) == 0


def rounded_to(units: Tensor, numbers: Tensor, form: Format) -> Tensor:
    """Numbers rounded to the nearest whole number of units that a code can stand for; zero without a unit."""
    values = numbers / torch.where(units == 0, 1.0, units)
    whole = values.div_(2).floor_().mul_(2).add_(1) if form.is_odd else values.round_()
    return whole.clamp_(*form.levels).mul_(units)


@contextmanager
def rounded_inputs(module: nn.Module, grids: Grids) -> Iterator[None]:
    """Round what layers read as an engine does that multiplies whole numbers, as long as the block lasts.

    Args:
        module: replicas that are made of it meanwhile do the same.
        grids: of the weights of these layers, which others may share; tables are looked up and read nothing.
    """
    known: dict[Tensor | None, Grid] = {module.get_parameter(name): grid for name, grid in grids.items()}
    handles, rounder = list[Any](), _Rounder()
    for layer in module.modules():
        weight: Tensor | None
        weight = layer.right.weight if isinstance(layer, LowRankEmbedding) else layer._parameters.get("weight")
        if weight not in known or isinstance(layer, nn.Embedding):
            continue
        rounded = partial(rounder, form=known[weight].form, read=known[weight].read)
        if isinstance(layer, LowRankEmbedding):
            # Its right factor is not called: what that reads is what is looked up.
            handles.append(layer.left.register_forward_hook(partial(_after_layer, rounded)))
        else:
            handles.append(layer.register_forward_pre_hook(partial(_before_layer, rounded), with_kwargs=True))
    handles.append(module.register_forward_hook(partial(_forget, rounder)))
    with removed_after(handles):
        yield


def _before_layer(rounded: Any, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if args:
        return (rounded(args[0]), *args[1:]), kwargs
    first, *others = kwargs
    return args, {first: rounded(kwargs[first]), **{name: kwargs[name] for name in others}}


def _after_layer(rounded: Any, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return rounded(output)


def _forget(rounder: _Rounder, *_: Any) -> None:
    rounder.forget()


class _Rounder:
    """Rounds inputs, one that several layers read in a row once. Each replica of a module has its own."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Format, Range | None, Tensor] | None = None

    def __call__(self, x: Tensor, form: Format, read: Range | None) -> Tensor:
        if self._last is not None:
            before, version, *known, rounded = self._last
            same = before is x and version == x._version and known == [form, read]
            if same and rounded.requires_grad == x.requires_grad:
                return rounded
        rounded = rounded_input(x, form, read)
        self._last = x, x._version, form, read, rounded
        return rounded

    def forget(self) -> None:
        """Let go of what was read last."""
        self._last = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rounder:
        return memo.setdefault(id(self), _Rounder())


def rounded_input(x: Tensor, form: Format, read: Range | None = None) -> Tensor:
    """What a product of whole numbers reads in the place of `x`.

    Eight bits in a range that is known, or without a sign and in that of all numbers and zero (ONNX's
    `DynamicQuantizeLinear`); beside weights with a scale a block and no steps, eight bits with a sign and a scale for
    each block, as ONNX Runtime has them for `MatMulNBits`.

    Example:
        >>> rounded_input(torch.tensor([-1.0, 0.0, 0.301, 1.55]), Format(bits=8))
        tensor([-1.0000,  0.0000,  0.3000,  1.5500])
    """
    if not x.numel():
        return x
    if form.block is not None and not form.stepped:
        return _in_blocks(x, form.block)
    if read is not None:
        return _Straight.apply(x, read.scale, read.least - read.zero, read.least + CODES - read.zero)
    low, high = (float(each) for each in torch.aminmax(x.detach()))
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float((np.float32(high) - np.float32(low)) / np.float32(CODES))
    if not 0 < scale < math.inf:
        return x
    zero = round(-low / scale)
    return _Straight.apply(x, scale, -zero, CODES - zero)


class _Straight(torch.autograd.Function):
    """Rounded to whole numbers of a scale within bounds; the gradient is that of what was rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        return x.div(scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return gradient, None, None, None


def _in_blocks(x: Tensor, block: int) -> Tensor:
    cols = x.shape[-1]
    with torch.no_grad():
        parts = functional.pad(x, (0, -cols % block)).unflatten(-1, (-1, block))
        largest = parts.abs().amax(-1, keepdim=True)
        # In the engine's order of operations: what is looked up in a table may lie halfway between two codes.
        codes = torch.round(parts * torch.where(largest > 0, largest.new_tensor(NEAR) / largest, 0.0))
        near = (codes * (largest / NEAR)).flatten(-2)[..., :cols]
    return x + (near - x).detach()
