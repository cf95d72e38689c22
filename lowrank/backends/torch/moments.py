"""Moments of the inputs or outputs of the layers of a running module, taken by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.moment_sums import Observe
from lowrank.backends.torch.hooks import first_input
from lowrank.backends.torch.inputs import call, mask_of, token_rows
from lowrank.backends.torch.normalize import experts_as
from lowrank.core.linalg.lapack import add_square
from lowrank.core.truncation.gram import Gram, Side, Tokens, moment_of
from lowrank.core.weight import Weight
from lowrank.nn.experts import observed

Watch = Callable[[Feed, Observe], None]
"""Runs a model on one batch, and shows the moment of each weight that is watched by the weight's name."""


@contextmanager
def watching(
    module: nn.Module,
    signature: Signature,
    weights: Sequence[Weight],
    sides: Mapping[str, Side],
    forward: Callable[[Feed], object] | None = None,
) -> Iterator[Watch]:
    """A function that runs the module; fused kernels that would pass layers by are off meanwhile.

    Args:
        module: the model.
        signature: how it is fed.
        weights: whose layers are watched.
        sides: which moment of each.
        forward: runs a part of the module on a feed; the whole, if not given.
    """
    watch = _MomentHooks(sides)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)

    def run(feed: Feed, observe: Observe) -> None:
        watch.mask, watch.observe = mask_of(feed), observe
        with torch.no_grad():
            forward(feed) if forward is not None else call(signature, module, feed)
        watch.finish()

    try:
        with ExitStack() as stack:
            stack.enter_context(experts_as(module, "eager"))
            for weight in weights:
                for layer in weight.layers:
                    if layer.kind == "experts":
                        path, _, key = layer.name.rpartition(".")
                        observer = _observer(module.get_parameter(layer.name), weight, watch)
                        stack.enter_context(observed(module.get_submodule(path), key, observer))
                    elif layer.kind == "lookup" or not weight.is_table:
                        # Of a table with a tied head the lookups decide: the head's outputs are another space.
                        hook = watch.hook(weight)
                        handle = module.get_submodule(layer.name).register_forward_hook(hook, with_kwargs=True)
                        stack.callback(handle.remove)
            yield run
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _MomentHooks:
    def __init__(self, sides: Mapping[str, Side]) -> None:
        self.sides = sides
        self.observe: Observe = lambda name, gram: None
        self.mask: Tensor | None = None
        self.stacks: dict[str, Gram] = {}
        """What the experts of each stack have seen in this batch."""
        self._last: tuple[Tensor, int, Gram | Tokens] | None = None

    def finish(self) -> None:
        """Show what was gathered over a batch, and let go of its last tensor."""
        for name, gram in self.stacks.items():
            self.observe(name, gram)
        self.stacks.clear()
        self._last = None

    def hook(self, weight: Weight) -> Callable[..., None]:
        """The hook that is registered on a layer of a weight."""
        side = self.sides[weight.name]

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            # Moments are taken on the CPU, in float64, wherever the model is.
            vectors, output = first_input(args, kwargs).cpu(), output.cpu()
            if isinstance(layer, nn.Embedding):
                gram = self._of_lookup(layer, vectors, output, side)
            elif isinstance(layer, nn.Conv1d | nn.Conv2d):
                gram = _of_conv(layer, vectors, output, side)
            elif side == "input":
                gram = self._of_input(vectors)
            else:
                bias = getattr(layer, "bias", None)
                rows = self._rows(output if bias is None else output - bias.cpu())
                gram = moment_of_rows("output", rows, self._rows(vectors))
            self.observe(weight.name, gram)

        return hook

    def _of_input(self, vectors: Tensor) -> Gram | Tokens:
        # The same object, still alive and not written to since: the address alone could belong to a later tensor.
        if self._last is None or self._last[0] is not vectors or self._last[1] != vectors._version:
            self._last = (vectors, vectors._version, moment_of_rows("input", self._rows(vectors)))
        return self._last[2]

    def _of_lookup(self, layer: nn.Embedding, ids: Tensor, output: Tensor, side: Side) -> Gram | Tokens:
        """A lookup is a product with a one-hot vector, whose squared norm is 1."""
        rows = self._rows(output)
        if side == "output":
            return replace(moment_of_rows("output", rows), energy=float(len(rows)))
        ids = ids[self.mask] if self.mask is not None and ids.shape == self.mask.shape else ids.reshape(-1)
        counts = torch.bincount(ids, minlength=layer.num_embeddings).double()
        return Gram("input", torch.diag(counts).numpy(), ids.numel(), float(ids.numel()))

    def _rows(self, tensor: Tensor) -> Tensor:
        """Tokens x width, in float32 or float64, without those that the batch's mask leaves out."""
        tensor = tensor.detach().cpu()
        return token_rows(tensor if tensor.dtype == torch.float64 else tensor.float(), self.mask)


def _of_conv(layer: nn.Conv1d | nn.Conv2d, images: Tensor, output: Tensor, side: Side) -> Gram | Tokens:
    """Every position of a convolution is a token; its input is the patch under the kernel."""
    groups = layer.groups
    energy = float(_patch_energy(layer, images.double()))
    if side == "output":
        product = output.double()
        if layer.bias is not None:
            product = product - layer.bias.cpu().double().reshape(-1, *[1] * (output.dim() - 2))
        rows = product.flatten(2).transpose(0, 1).reshape(groups, layer.out_channels // groups, -1)
    else:
        # As a convolution with one output for each number of a patch, which knows strides and padding of its own.
        width = layer.in_channels // groups
        patch = width * layer.weight[0, 0].numel()
        picks = torch.eye(patch, dtype=torch.float64).reshape(patch, width, *layer.kernel_size)
        rows = layer._conv_forward(images.double(), picks.repeat(groups, *[1] * (picks.dim() - 1)), None)
        rows = rows.flatten(2).transpose(0, 1).reshape(groups, patch, -1)
    rows = rows.transpose(1, 2)
    if groups == 1:
        return replace(moment_of_rows(side, rows[0]), energy=energy)
    # A position that is not finite in one group counts in none: all have one number of tokens.
    finite = torch.isfinite(rows).all(2).all(0)
    used = rows[:, finite]
    count = used.shape[1]
    return Gram(side, (used.transpose(1, 2) @ used).numpy(), count, energy, rows.shape[1] - count)


def _patch_energy(layer: nn.Conv1d | nn.Conv2d, images: Tensor) -> Tensor:
    """The summed squared norm of all patches: one more convolution, with ones."""
    squares = images.square().nan_to_num(0.0, 0.0, 0.0).sum(1, keepdim=True)
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    function = nn.functional.conv1d if squares.dim() == 3 else nn.functional.conv2d
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    return function(squares, ones, None, layer.stride, padding, layer.dilation).sum()


def _observer(parameter: Tensor, weight: Weight, watch: _MomentHooks) -> Callable[[int | None, Tensor, str], None]:
    """What to call with the rows that an expert of a stack is multiplied with."""
    side = watch.sides[weight.name]

    def observe(index: int | None, rows: Tensor, _: str) -> None:
        rows = rows.detach().cpu().double()
        energy = _energy(rows.reshape(-1, rows.shape[-1]))
        if side == "output":
            dense = parameter.detach().cpu().double()
            dense = dense if weight.view.stored == "stack rows cols" else dense.transpose(1, 2)
            rows = rows @ (dense[index].T if index is not None else dense.transpose(1, 2))
        width = rows.shape[-1]
        if weight.name not in watch.stacks:
            watch.stacks[weight.name] = Gram(side, np.zeros((weight.stack, width, width)))
        stack = watch.stacks[weight.name]
        tokens, bad = 0, 0
        for i, part in [(index, rows)] if index is not None else enumerate(rows):
            seen = Tokens.of(side, part.reshape(-1, width).numpy())
            # In place: a whole stack of moments for every expert would be allocated and added otherwise.
            add_square(stack.moment[i], seen.rows)
            tokens, bad = tokens + seen.tokens, bad + seen.nonfinite
        watch.stacks[weight.name] = Gram(
            side, stack.moment, stack.tokens + tokens, stack.energy + energy, stack.nonfinite + bad
        )

    return observe


def moment_of_rows(side: Side, rows: Tensor, inputs: Tensor | None = None) -> Gram | Tokens:
    """The moment of rows, in float64: directions that the data hardly show are told apart by their last digits.

    Args:
        side: of the layer.
        rows: tokens x width.
        inputs: what the layer read, tokens x width, where the rows are what it gave.
    """
    vectors = rows.double().numpy()
    seen = moment_of(side, vectors)
    if inputs is None:
        return seen
    if seen.nonfinite:
        with np.errstate(over="ignore", invalid="ignore"):
            inputs = inputs[torch.from_numpy(np.isfinite(np.square(vectors).sum(1)))]
    return replace(seen, energy=_energy(inputs))


def _energy(rows: Tensor) -> float:
    return float(rows[torch.isfinite(rows).all(1)].double().square().sum())
