"""Rounding while training: layers compute with numbers of the formats in which they will be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import as_tensors, call
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.chain import rounded_chain
from lowrank.core.rounding.formats import LEAST, Format
from lowrank.healing.optimizer import Optimizer
from lowrank.nn import LowRankEmbedding, LowRankLinear, PivotedLinear

REFRESHED = 40
"""Steps after which scales are found anew for what the numbers have become."""

Formats = Mapping[str, Format]
"""Of parameters, by name."""


def formats_in(module: nn.Module, format_of: Callable[[str], Format | None]) -> dict[str, Format]:
    """The format of every matrix of a module that a graph of it will hold in one.

    Args:
        module: in float32; numbers of fewer bits cannot hold what formats stand for.
        format_of: from the name of a parameter.
    """
    found: dict[str, Format] = {}
    for path, layer in module.named_modules():
        whole = type(layer) is nn.Linear or isinstance(layer, nn.Embedding)
        weight = layer.weight if whole else None
        if not isinstance(weight, nn.Parameter) or weight.dtype != torch.float32 or weight.numel() < LEAST:
            continue
        parent = module.get_submodule(path.rpartition(".")[0])
        form = None if isinstance(parent, PivotedLinear) else format_of(f"{path}.weight")
        if form is not None:
            found[f"{path}.weight"] = form
    return found


def layers_of(formats: Iterable[str]) -> list[str]:
    """The names of the layers whose matrices these are."""
    return [name.removesuffix(".weight") for name in formats]


def round_(module: nn.Module, signature: Signature, formats: Formats, feeds: Sequence[Feed]) -> None:
    """Round matrices in place as a graph of the module would be, with what the module computes on some data.

    Args:
        module: in float32.
        signature: how it is fed.
        formats: of its parameters.
        feeds: the data.
    """
    layers = {name.removesuffix(".weight"): form for name, form in formats.items()}
    moments = _moments(module, signature, list(layers), feeds)
    done = set[int]()

    def place(parameter: Tensor, matrix: Matrix) -> None:
        done.add(id(parameter))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(matrix))

    for users in _chains(module, layers):
        path, first = next(iter(users.items()))
        right, outer = first.right.weight, layers[f"{path}.right"]
        lefts, forms = [user.left.weight for user in users.values()], [layers[f"{name}.left"] for name in users]
        if isinstance(first, LowRankEmbedding):
            # What is looked up comes first, and `right` reads it.
            table = _numbers(lefts[0]).T
            codes, others = rounded_chain([_numbers(right).T], table, [outer], forms[0], None, is_table=True)
            place(lefts[0], codes.matrix())
            place(right, others[0].matrix().T)
            continue
        codes, others = rounded_chain(
            [_numbers(left) for left in lefts], _numbers(right), forms, outer, moments.get(id(right))
        )
        place(right, codes.matrix())
        for left, each in zip(lefts, others, strict=True):
            place(left, each.matrix())
    for path, form in layers.items():
        weight: Any = module.get_submodule(path).weight
        if id(weight) not in done:
            place(weight, form.codes(_numbers(weight), moments.get(id(weight))).matrix())


class RoundedOptimizer(Optimizer):
    """An optimiser of numbers of which the model only ever sees the rounded ones, to which the gradients belong
    ("straight through": BinaryConnect, Courbariaux and others, 2015).

    Args:
        parameters: by name, rounded.
        rate: see `Optimizer`.
        smallest: see `Optimizer`.
        formats: of those that are rounded.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rate: float,
        smallest: Mapping[str, float] | None,
        formats: Formats,
    ) -> None:
        super().__init__(parameters, rate, smallest)
        self.formats = {name: form for name, form in formats.items() if name in self.parameters}
        self._exact = {name: self.parameters[name].detach().clone() for name in self.formats}
        self._units: dict[str, Tensor] = {}
        self._steps = 0

    def step(self, share: float) -> None:
        """Change the exact numbers, and give the model the rounded ones."""
        with torch.no_grad():
            for name, exact in self._exact.items():
                self.parameters[name].copy_(exact)
        super().step(share)
        with torch.no_grad():
            for name, form in self.formats.items():
                parameter = self.parameters[name]
                self._exact[name].copy_(parameter)
                if self._steps % REFRESHED == 0:
                    self._units[name] = torch.from_numpy(form.units(_numbers(parameter))).to(parameter)
                parameter.copy_(_nearest(parameter, self._units[name], form))
        self._steps += 1


def _nearest(numbers: Tensor, units: Tensor, form: Format) -> Tensor:
    """Numbers rounded to the nearest whole number of units that a code can stand for."""
    safe = torch.where(units == 0, torch.ones_like(units), units)
    return torch.clamp(torch.round(numbers / safe), *form.levels) * units


def _numbers(tensor: Tensor) -> Matrix:
    return tensor.detach().double().cpu().numpy()


def _chains(module: nn.Module, layers: Mapping[str, Format]) -> Iterator[dict[str, Any]]:
    """Layers of two factors that are all rounded, by their paths; those that share the right one together."""
    by_right: dict[int, dict[str, Any]] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LowRankLinear | LowRankEmbedding):
            by_right.setdefault(id(layer.right.weight), {})[path] = layer
    for users in by_right.values():
        if f"{next(iter(users))}.right" in layers and all(f"{path}.left" in layers for path in users):
            yield users


def _moments(module: nn.Module, signature: Signature, paths: Sequence[str], feeds: Sequence[Feed]) -> dict[int, Matrix]:
    """`E[x x']` of what linear layers read, by the identity of their weights."""
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def listen(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> None:
        x = first_input(args, kwargs).detach().flatten(0, -2).double()
        key = id(layer.weight)
        sums[key] = sums[key] + x.T @ x if key in sums else x.T @ x
        counts[key] = counts.get(key, 0) + len(x)

    linear = [layer for layer in map(module.get_submodule, paths) if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(listen, with_kwargs=True) for layer in linear]
    with removed_after(handles), torch.no_grad():
        for feed in feeds:
            call(signature, module, as_tensors(signature, feed))
    return {key: (total / counts[key]).cpu().numpy() for key, total in sums.items()}
