"""Rounding a module in place, in the way in which its graph would be rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from lowrank.healing.grids import Grid, Grids
from lowrank.nn import LowRankEmbedding, LowRankLinear

MOMENTS = 1 << 30
"""Bytes of moments in memory at a time."""


def round_(module: nn.Module, signature: Signature, grids: Grids, feeds: Sequence[Feed]) -> None:
    """Round matrices in place by what the module computes on some data, as those of a graph are rounded.

    What is in its format already stays as it is, factors that are read together if all are.

    Args:
        module: in float32.
        signature: how it is fed.
        grids: of its parameters.
        feeds: the data. Where there is no memory for all moments at once, it is run several times; the later ones are
            of what the first matrices are then.
    """
    waiting = list(_jobs(module, grids))
    while waiting:
        now, size = list[_Job](), 0
        while waiting and (not now or size + waiting[0].nbytes <= MOMENTS):
            size += waiting[0].nbytes
            now.append(waiting.pop(0))
        moments = _moments(module, signature, {job.reads for job in now if job.reads is not None}, feeds)
        for job in now:
            job.round(None if job.reads is None else moments.get(job.reads))


@dataclass(frozen=True, eq=False)
class _Job:
    """Matrices that are rounded together."""

    round: Callable[[Matrix | None], None]
    """Rounds them, given the moment of the inputs."""
    reads: Tensor | None = None
    """The weight whose inputs decide what rounding may cost; none for tables."""
    inputs: int = 0
    """Of that weight."""

    @property
    def nbytes(self) -> int:
        """Bytes of the moment, and of what one batch adds to it."""
        return 16 * self.inputs**2


def _jobs(module: nn.Module, grids: Grids) -> Iterator[_Job]:
    """All that is rounded, each matrix once."""
    done = set[Tensor]()
    for names in _tables(module, grids):
        left, right = (module.get_parameter(name) for name in names)
        done |= {left, right}
        if all(grids[name].holds(module.get_parameter(name)) for name in names):
            continue
        yield _Job(partial(_round_table, left, right, *(grids[name] for name in names)))
    for users in _chains(module, grids):
        path, right = next(iter(users)), next(iter(users.values())).right
        lefts = {user.left.weight: grids[f"{name}.left.weight"] for name, user in users.items()}
        done |= {right.weight, *lefts}
        outer = grids[f"{path}.right.weight"]
        if outer.holds(right.weight) and all(grid.holds(left) for left, grid in lefts.items()):
            continue
        chain = partial(_round_chain, lefts, right.weight, outer)
        yield _Job(chain, right.weight, right.in_features)
    for name, grid in grids.items():
        weight = module.get_parameter(name)
        if weight in done or grid.holds(weight):
            continue
        single = partial(_round_one, weight, grid)
        yield _Job(single) if grid.table else _Job(single, weight, weight.shape[0 if grid.turned else 1])


def _round_table(left: Tensor, right: Tensor, entries: Grid, widths: Grid, _: Matrix | None) -> None:
    matrices = [widths.matrix(right)], entries.matrix(left).T
    codes, others = rounded_chain(*matrices, [widths.form], entries.form, None, is_table=True)
    entries.fill_(left, codes.matrix())
    widths.fill_(right, others[0].matrix())


def _round_chain(lefts: Mapping[Tensor, Grid], right: Tensor, outer: Grid, moment: Matrix | None) -> None:
    matrices = [grid.matrix(left) for left, grid in lefts.items()]
    forms = [grid.form for grid in lefts.values()]
    codes, others = rounded_chain(matrices, outer.matrix(right), forms, outer.form, moment)
    for (parameter, grid), each in zip(((right, outer), *lefts.items()), (codes, *others), strict=True):
        grid.fill_(parameter, each.matrix())


def _round_one(parameter: Tensor, grid: Grid, moment: Matrix | None) -> None:
    grid.fill_(parameter, grid.form.codes(grid.matrix(parameter), moment).matrix())


def _tables(module: nn.Module, grids: Grids) -> Iterator[tuple[str, str]]:
    """Both factors of tables that are rounded and that nothing else reads, by name."""
    heads = {layer.left.weight for layer in module.modules() if isinstance(layer, LowRankLinear)}
    for path, layer in module.named_modules():
        names = f"{path}.left.weight", f"{path}.right.weight"
        if isinstance(layer, LowRankEmbedding) and grids.keys() >= {*names} and layer.left.weight not in heads:
            yield names


def _chains(module: nn.Module, grids: Grids) -> Iterator[dict[str, LowRankLinear]]:
    """Layers of two factors that are all rounded, by their paths; those that share the right one together."""
    by_right: dict[Tensor, dict[str, LowRankLinear]] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LowRankLinear):
            by_right.setdefault(layer.right.weight, {})[path] = layer
    for users in by_right.values():
        if f"{next(iter(users))}.right.weight" in grids and all(f"{path}.left.weight" in grids for path in users):
            yield users


def _moments(
    module: nn.Module, signature: Signature, weights: set[Tensor], feeds: Sequence[Feed]
) -> dict[Tensor, Matrix]:
    """`E[x x']` of what layers read, by their weights; none for those that read nothing that is finite."""
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

    layers = [layer for layer in module.modules() if not isinstance(layer, nn.Embedding) and _weight(layer) in weights]
    handles = [layer.register_forward_hook(listen, with_kwargs=True) for layer in layers]
    with removed_after(handles), torch.no_grad():
        for feed in feeds if handles else ():
            mask = mask_of(feed)
            call(signature, module, as_tensors(signature, feed))
            known.clear()
    return {weight: (total / counts[weight]).cpu().numpy() for weight, total in sums.items() if counts[weight]}


def _weight(layer: nn.Module) -> Tensor | None:
    """A layer's own weight, which is not computed from others."""
    return layer._parameters.get("weight")
