"""Rounding while training: layers compute with numbers of the formats in which they will be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import as_tensors, call, mask_of, token_rows
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.chain import rounded_chain
from lowrank.core.rounding.formats import LEAST, Format
from lowrank.healing.optimizer import Optimizer
from lowrank.nn import LowRankLinear, PivotedLinear

MOMENTS = 1 << 30
"""Bytes of moments in memory at a time."""
REFRESHED = 40
"""Steps after which scales are found anew for what the numbers have become."""

Formats = Mapping[str, Format]
"""Of parameters, by name."""


def formats_in(
    module: nn.Module, blocks: Iterable[str], format_of: Callable[[str], Format | None]
) -> dict[str, Format]:
    """The format of every matrix inside of some blocks that a graph of the module will hold in one, by its first name.

    Args:
        module: in float32; numbers of fewer bits cannot hold what formats stand for.
        blocks: their paths. What is outside, such as a table of positions, may become something else in a graph.
        format_of: from the name of a parameter.
    """
    fronts, found = tuple(f"{path}." for path in blocks), dict[str, Format]()
    # What several layers share has one name.
    names = {name for name, _ in module.named_parameters()}
    for path, layer in module.named_modules():
        if type(layer) is not nn.Linear or not path.startswith(fronts) or f"{path}.weight" not in names:
            continue
        weight = layer.weight
        if not isinstance(weight, nn.Parameter) or weight.dtype != torch.float32 or weight.numel() < LEAST:
            continue
        parent = module.get_submodule(path.rpartition(".")[0])
        form = None if isinstance(parent, PivotedLinear) else format_of(f"{path}.weight")
        if form is not None:
            found[f"{path}.weight"] = form
    return found


def round_(module: nn.Module, signature: Signature, formats: Formats, feeds: Sequence[Feed]) -> None:
    """Round matrices in place by what the module computes on some data, as those of a graph are rounded.

    Args:
        module: in float32.
        signature: how it is fed.
        formats: of its parameters.
        feeds: the data. Where there is no memory for all moments at once, it is run several times; the later ones are
            of what the first matrices are then.
    """
    waiting = list(_jobs(module, {name.removesuffix(".weight"): form for name, form in formats.items()}))
    while waiting:
        now, size = list[_Job](), 0
        while waiting and (not now or size + waiting[0].nbytes <= MOMENTS):
            size += waiting[0].nbytes
            now.append(waiting.pop(0))
        moments = _moments(module, signature, [job.first.weight for job in now], feeds)
        for job in now:
            job.round(moments.get(job.first.weight))


@dataclass(frozen=True, eq=False)
class _Job:
    """Matrices that are rounded together."""

    first: nn.Linear
    """The layer whose inputs decide what rounding may cost."""
    round: Callable[[Matrix | None], None]
    """Rounds them, given the moment of those inputs."""

    @property
    def nbytes(self) -> int:
        """Bytes of the moment."""
        return 8 * self.first.in_features**2


def _jobs(module: nn.Module, layers: Mapping[str, Format]) -> Iterator[_Job]:
    """All that is rounded, each matrix once."""
    done = set[Tensor]()
    for users in _chains(module, layers):
        path, right = next(iter(users)), next(iter(users.values())).right
        lefts, forms = [user.left for user in users.values()], [layers[f"{name}.left"] for name in users]
        done |= {layer.weight for layer in (right, *lefts)}
        yield _Job(right, partial(_round_chain, lefts, right, forms, layers[f"{path}.right"]))
    for path, form in layers.items():
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if layer.weight not in done:
            done.add(layer.weight)
            yield _Job(layer, partial(_round_one, layer, form))


def _round_chain(
    lefts: Sequence[nn.Linear], right: nn.Linear, forms: Sequence[Format], outer: Format, moment: Matrix | None
) -> None:
    matrices = [_numbers(left.weight) for left in lefts]
    codes, others = rounded_chain(matrices, _numbers(right.weight), forms, outer, moment)
    for layer, each in zip((right, *lefts), (codes, *others), strict=True):
        _fill(layer.weight, each.matrix())


def _round_one(layer: nn.Linear, form: Format, moment: Matrix | None) -> None:
    _fill(layer.weight, form.codes(_numbers(layer.weight), moment).matrix())


def _fill(parameter: Tensor, matrix: Matrix) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(matrix))


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


def _chains(module: nn.Module, layers: Mapping[str, Format]) -> Iterator[dict[str, LowRankLinear]]:
    """Layers of two factors that are all rounded, by their paths; those that share the right one together."""
    by_right: dict[Tensor, dict[str, LowRankLinear]] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LowRankLinear):
            by_right.setdefault(layer.right.weight, {})[path] = layer
    for users in by_right.values():
        if f"{next(iter(users))}.right" in layers and all(f"{path}.left" in layers for path in users):
            yield users


def _moments(
    module: nn.Module, signature: Signature, weights: Sequence[Tensor], feeds: Sequence[Feed]
) -> dict[Tensor, Matrix]:
    """`E[x x']` of what linear layers read, by their weights; none for those that read nothing that is finite."""
    sums, counts = dict[Tensor, Tensor](), dict[Tensor, int]()
    known: dict[tuple[int, int], tuple[Tensor, Tensor, int]] = {}
    """Of a batch, by what is read, which layers may share: it stays alive, with its products and their number."""
    mask: Tensor | None = None

    def listen(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> None:
        x = first_input(args, kwargs)
        key = id(x), x._version
        if key not in known:
            rows = token_rows(x.detach(), mask).double()
            rows = rows[rows.isfinite().all(1)]
            known[key] = x, rows.T @ rows, len(rows)
        _, product, count = known[key]
        sums[layer.weight] = sums[layer.weight] + product if layer.weight in sums else product
        counts[layer.weight] = counts.get(layer.weight, 0) + count

    wanted = set(weights)
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and layer.weight in wanted]
    handles = [layer.register_forward_hook(listen, with_kwargs=True) for layer in layers]
    with removed_after(handles), torch.no_grad():
        for feed in feeds:
            mask = mask_of(feed)
            call(signature, module, as_tensors(signature, feed))
            known.clear()
    return {weight: (total / counts[weight]).cpu().numpy() for weight, total in sums.items() if counts[weight]}
