"""A dense module and its compressed one, run side by side on the same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.folds import JointFolds
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import mask_of, token_rows
from lowrank.backends.torch.layers import fill_
from lowrank.backends.torch.partial_forward import Prefix
from lowrank.core.linalg.eigen import Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.refit import Joint, kept_outputs
from lowrank.core.weight import Weight
from lowrank.nn import NarrowLinear

Rows = np.ndarray[Any, np.dtype[np.int64]]


class ModulePair:
    """Joint moments of layers that read one input, and new numbers for them, in the order of the model.

    Args:
        dense: the module as it was.
        small: the compressed one, which `put` changes.
        signature: how both are fed.
        fit: batches for the moments that choose.
        judge: batches for those that judge.
    """

    def __init__(
        self,
        dense: nn.Module,
        small: nn.Module,
        signature: Signature,
        fit: Sequence[Feed],
        judge: Sequence[Feed],
    ) -> None:
        self.dense, self.small = dense, small
        self.feeds, self.fit_count = [*fit, *judge], len(fit)
        self._before = Prefix(dense, signature, self.feeds)
        self._after = Prefix(small, signature, self.feeds)

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
        with removed_after(handles):
            self._before.run(0)
        stages: list[tuple[int, list[Weight]]] = []
        for tensor, weight in calls:
            if stages and stages[-1][0] == tensor:
                stages[-1][1].append(weight)
            else:
                stages.append((tensor, [weight]))
        return [stage for _, stage in stages]

    def moments(self, stage: Sequence[Weight], factored: Mapping[str, Replacement]) -> dict[str, tuple[Joint, Joint]]:
        """For each weight of a stage the moments of both folds."""
        return self.joint(stage, {w.name: kept_outputs(factored[w.name], w.rows) for w in stage})

    def joint(self, stage: Sequence[Weight], outputs: Mapping[str, Rows]) -> dict[str, tuple[Joint, Joint]]:
        """The same, given which outputs of the dense layers those of the compressed ones stand for."""
        names = {w.layers[0].name: w for w in stage}
        at = min(map(self._before.block_of, names))
        self._before.advance(at)
        self._after.advance(at)
        folds = JointFolds(self.fit_count)
        for i, feed in enumerate(self.feeds):
            mask = mask_of(feed)
            dense, small = (model.watch(i, list(names)) for model in (self._before, self._after))
            # What each tensor holds and its products, with the tensor itself, so that no later one has its address.
            inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
            for path, weight in names.items():
                layer, x, y = self.small.get_submodule(path), small[path][0], dense[path][1]
                if isinstance(layer, NarrowLinear) and layer.picks is not None:
                    x = x.index_select(-1, layer.picks)
                y = y.index_select(-1, torch.from_numpy(outputs[weight.name]))
                # Weights of a stage read one tensor, unless what picks from it made another of it.
                if id(x) not in inputs:
                    rows = token_rows(x.detach().float().cpu(), mask)
                    inputs[id(x)] = x, rows, rows.T @ rows
                _, rows, square = inputs[id(x)]
                folds.add(weight.name, i, _joint(rows, token_rows(y.detach().float().cpu(), mask), square))
        return folds.both()

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


def _joint(x: Tensor, y: Tensor, square: Tensor) -> Joint:
    """The moments of one batch; `square` is `x' x` where all is finite."""
    finite = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
    if not finite.all():
        x, y = x[finite], y[finite]
        square = x.T @ x
    # Products of a batch in float32, their sum over batches in float64.
    return Joint(
        square.double().numpy(),
        (y.T @ x).double().numpy(),
        x.double().sum(0).numpy(),
        y.double().sum(0).numpy(),
        float(y.double().square().sum()),
        len(x),
    )
