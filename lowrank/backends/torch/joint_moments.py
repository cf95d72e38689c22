"""A dense module and its compressed one, run side by side on the same batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.backends.folds import JointFolds
from lowrank.backends.inputs import Feed, Signature, elements
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import call, mask_of, token_rows
from lowrank.backends.torch.layers import fill_
from lowrank.backends.torch.partial_forward import Prefix
from lowrank.core.linalg.eigen import Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.refit import Joint, kept_outputs
from lowrank.core.weight import Weight
from lowrank.nn import NarrowLinear
from lowrank.parallel import threads

Rows = np.ndarray[Any, np.dtype[np.int64]]
Array = NDArray[Any]
Folded = tuple[Joint, ...]
"""The moments of the batches that choose, and of those that judge where there are any."""
PARTS = 8
"""Groups of batches whose products are summed apart."""
KEPT = 1 << 30
"""Bytes of what the layers of one dense block give, at most."""


class ModulePair:
    """Joint moments of layers that read one input, and new numbers for them, in the order of the model.

    Args:
        dense: the module as it was.
        small: the compressed one, which `put` changes.
        signature: how both are fed.
        fit: batches for the moments that choose.
        judge: batches for those that judge.
        jobs: how many batches are run at once, on replicas of the modules.
    """

    def __init__(
        self,
        dense: nn.Module,
        small: nn.Module,
        signature: Signature,
        fit: Sequence[Feed],
        judge: Sequence[Feed],
        jobs: int = 1,
    ) -> None:
        self.dense, self.small = dense, small
        self._signature, self._feeds = signature, [*fit, *judge]
        self._jobs = jobs
        self._before = Prefix(dense, signature, self._feeds, self._jobs)
        self._after = Prefix(small, signature, self._feeds, self._jobs)
        # So many whatever the number of threads: what is summed in which order does not depend on that.
        count, judging = min(PARTS, len(fit)), range(len(fit), len(self._feeds))
        folds = [(range(len(fit))[i::count], judging[i::count]) for i in range(count)]
        masks = [mask_of(feed) for feed in self._feeds]
        self._parts = [_Part(self._before, self._after, masks, [fold for fold in each if fold]) for each in folds]
        self._wanted: list[Weight] = []
        self._rows = 0.0
        """Tokens of all batches, padding too, as the first one tells."""

    def stages(self, weights: Sequence[Weight]) -> list[list[Weight]]:
        """Weights in the order in which they are called, those that read the very same tensor together."""
        by_layer = {w.layers[0].name: w for w in weights}
        calls: list[tuple[int, Weight]] = []
        inputs: list[Tensor] = []
        handles = []
        for path, weight in by_layer.items():

            def hook(layer: nn.Module, args: Any, kwargs: Any, _: object, weight: Weight = weight) -> None:
                # Kept alive, so that no later tensor has its address.
                inputs.append(first_input(args, kwargs))
                calls.append((id(inputs[-1]), weight))

            handles.append(self.dense.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
        with removed_after(handles), torch.no_grad():
            call(self._signature, self.dense, self._feeds[0])
        stages: list[tuple[int, list[Weight]]] = []
        for tensor, weight in calls:
            if stages and stages[-1][0] == tensor:
                stages[-1][1].append(weight)
            else:
                stages.append((tensor, [weight]))
        self._wanted = [weight for _, weight in calls]
        most = max((tensor.numel() / tensor.shape[-1] for tensor in inputs), default=0.0)
        sizes = list(map(elements, self._feeds))
        self._rows = most * sum(sizes) / sizes[0]
        return [stage for _, stage in stages]

    def moments(self, stage: Sequence[Weight], factored: Mapping[str, Replacement]) -> dict[str, tuple[Joint, Joint]]:
        """For each weight of a stage the moments of both folds."""
        wanted = self._wanted if all(weight in self._wanted for weight in stage) else stage
        return self.joint(stage, {w.name: kept_outputs(factored[w.name], w.rows) for w in wanted})

    def joint(self, stage: Sequence[Weight], outputs: Mapping[str, Rows]) -> dict[str, tuple[Joint, Joint]]:
        """The same, given which outputs of the dense layers those of the compressed ones stand for; those of other
        weights of the block tell what is wanted of it later."""
        at = min(self._before.block_of(w.layers[0].name) for w in stage)
        names = [w.layers[0].name for w in stage]
        self._after.advance(at)
        with threads(self._jobs) as pool:
            if not all(name in self._parts[0].given for name in names):
                self._before.advance(at)
                kept, whole = self._to_keep(at, stage, outputs)
                deque(pool.map(lambda part: part.take(kept, at + 1 if whole else None), self._parts), maxlen=0)
                if whole:
                    self._before.moved_to(at + 1)
            picks = {name: self._picks(name) for name in names}
            folds = JointFolds()
            for found in pool.map(lambda part: part.joint(picks), self._parts):
                for name, joints in found.items():
                    for fold, each in enumerate(joints):
                        folds.add(name, each, judges=fold > 0)
        both = folds.both()
        return {w.name: both[w.layers[0].name] for w in stage}

    def _to_keep(self, at: int, stage: Sequence[Weight], outputs: Mapping[str, Rows]) -> tuple[dict[str, Rows], bool]:
        """The outputs of the dense layers that are kept until the next block, so that this one is run once; those of
        the stage alone, where there is no room for more or it is in no block."""
        block = [w for w in self._wanted if w.name in outputs and self._before.is_in(at, w.layers[0].name)]
        kept = {w.layers[0].name: outputs[w.name] for w in block}
        if all(w in block for w in stage) and 4 * self._rows * sum(map(len, kept.values())) <= KEPT:
            return kept, True
        return {w.layers[0].name: outputs[w.name] for w in stage}, False

    def _picks(self, name: str) -> Tensor | None:
        """Which of its inputs a layer of the compressed module reads; None if all."""
        layer = self.small.get_submodule(name)
        return layer.picks if isinstance(layer, NarrowLinear) else None

    def put(self, weight: Weight, replacement: Replacement) -> None:
        """Give a layer of the compressed module new numbers, in the structure that it has."""
        path = weight.layers[0].name
        dense = self.dense.get_submodule(path)
        layer: Any = self.small.get_submodule(path)
        stored = dense.get_parameter("weight")
        fill_(layer, weight, replacement, dense, stored)

    def bias(self, weight: Weight) -> Vector | None:
        """The bias of a layer of the compressed module, as wide as what it gives."""
        layer = self.small.get_submodule(weight.layers[0].name)
        bias = layer.linear.bias if isinstance(layer, NarrowLinear) else getattr(layer, "bias", None)
        return bias.detach().double().cpu().numpy() if isinstance(bias, Tensor) else None


class _Part:
    """Some batches of both folds.

    Args:
        dense: of the dense module.
        small: of the compressed one.
        masks: of all batches.
        folds: the numbers of its batches that choose, and of those that judge if there are any.
    """

    def __init__(
        self, dense: Prefix, small: Prefix, masks: Sequence[Tensor | None], folds: Sequence[Sequence[int]]
    ) -> None:
        self._before, self._after, self._masks, self._folds = dense, small, masks, folds
        self.given: dict[str, list[Array]] = {}
        """What layers of one dense block give in each fold, until it is asked for: tokens x the outputs that are
        wanted."""

    def take(self, kept: Mapping[str, Rows], to: int | None) -> None:
        """Run the dense module, and keep what some layers give.

        Args:
            kept: the layers, and which of their outputs.
            to: see `Prefix.gives`.
        """
        picks = {name: torch.from_numpy(rows) for name, rows in kept.items()}
        self.given = {name: [] for name in kept}
        for fold in self._folds:
            rows: dict[str, list[Tensor]] = {name: [] for name in kept}
            for index in fold:
                for name, output in self._before.gives(index, list(kept), to).items():
                    rows[name].append(self._rows(index, output.index_select(-1, picks[name])))
            for name, each in rows.items():
                self.given[name].append(torch.cat(each).numpy())

    def joint(self, picks: Mapping[str, Tensor | None]) -> dict[str, Folded]:
        """The moments in both folds of layers that read one input; what they give is forgotten.

        Args:
            picks: for each layer, which of its inputs it reads; None if all.
        """
        found: dict[str, list[Joint]] = {name: [] for name in picks}
        for number, fold in enumerate(self._folds):
            calls = [self._after.reads(index, list(picks)) for index in fold]
            squares: dict[Any, tuple[Array, Array]] = {}
            for name, own in picks.items():
                read = [each[name] for each in calls]
                if own is not None:
                    read = [x.index_select(-1, own) for x in read]
                # Layers of a stage read one tensor, unless what picks from it makes another of it.
                key = name if own is not None else tuple(map(id, read))
                if key not in squares:
                    x = torch.cat([self._rows(index, each) for index, each in zip(fold, read, strict=True)]).numpy()
                    squares[key] = x, x.T @ x
                found[name].append(_joint(squares[key][0], self.given[name][number], squares[key][1]))
        for name in picks:
            del self.given[name]
        return {name: tuple(joints) for name, joints in found.items()}

    def _rows(self, index: int, batch: Tensor) -> Tensor:
        """Tokens x width, without padding."""
        return token_rows(batch.detach().float().cpu(), self._masks[index])


def _joint(x: Array, y: Array, square: Array) -> Joint:
    """The moments of some tokens; `square` is `x' x` where all is finite."""
    finite = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    if not finite.all():
        x, y = x[finite], y[finite]
        square = x.T @ x
    # Products in float32, their sum over parts in float64.
    return Joint(
        square.astype(np.float64),
        (y.T @ x).astype(np.float64),
        x.sum(0, dtype=np.float64),
        y.sum(0, dtype=np.float64),
        float(np.einsum("ij,ij->", y, y, dtype=np.float64)),
        len(x),
    )
