"""Curvature of a module's output with respect to what its layers give: second moments of gradients, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.moment_sums import Observe, sum_moments
from lowrank.backends.torch.compared import compared_rows
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import call, compared_output, mask_of, token_rows
from lowrank.backends.torch.replicas import Spares, replica
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight
from lowrank.parallel import InTurn

READ = " (read)"
"""What follows the name of a table whose head's inputs are meant."""
CLIP = 10.0
"""Of the mean norm: one token's gradient counts at most this much, so that no outlier decides."""


def output_curvature(
    module: nn.Module, signature: Signature, weights: Sequence[Weight], feeds: Sequence[Feed], jobs: int = 1
) -> dict[str, Matrix]:
    """`E[g g']` of the gradient of the output's own measure with respect to what each layer gives, rows x rows.

    The Gauss-Newton matrix of the measure by sampling: for logits the gradient of the log probability of a label drawn
    from the model itself (its Fisher information); for an embedding and for values that of a random projection of
    the unit vector, or of the numbers (Martens 2020, section 9; K-FAC uses the same moments). Token by token: never
    of gradients summed over a batch, whose rank collapses.

    Of a table whose head gives the logits, what the head reads is added, `E[h h']`. To second order a change D of the
    rows costs the head `sum_v p_v (D_v' h)^2` and the lookups `sum_v f_v (D_v' g)^2`; with entries that are predicted
    about as often as they are read, p = f, both are one metric.

    Args:
        module: whose parameters may have gradients or not.
        signature: how it is fed.
        weights: of which layers.
        feeds: batches.
        jobs: how many of them are run at once, on replicas of the module.
    """
    heads = {
        layer.name: weight.name
        for weight in weights
        for layer in weight.layers
        if weight.is_table and layer.kind == "linear" and any(output.kind == "logits" for output in signature.compared)
    }
    listened = {w.name: next((x for x in w.layers if x.kind == "lookup"), w.layers[0]).name for w in weights}
    read = {layer: f"{name}{READ}" for layer, name in heads.items()}
    zeros = {weight.name: _zeros(weight.rows) for weight in weights}
    zeros |= {read[layer]: _zeros(zeros[name].moment.shape[0]) for layer, name in heads.items()}

    generator, turns = torch.Generator().manual_seed(0), InTurn()
    hooks = ExitStack()

    def hooked() -> _Gradients:
        gradients = _Gradients(replica(module) if jobs > 1 else module, listened, read)
        hooks.enter_context(removed_after(gradients.handles))
        return gradients

    spares = Spares(hooked)

    def watch(numbered: tuple[int, Feed], observe: Observe) -> None:
        number, feed = numbered
        with spares.one() as gradients, gradients.shown_to(observe, mask_of(feed)), torch.enable_grad():
            # One after the other, so that what is drawn for a sample does not depend on threads and batches.
            with turns.after(number, lambda: call(signature, gradients.module, feed)) as outputs:
                value = _probes(signature, outputs, feed, generator)
            if value.requires_grad and gradients.leaves:
                torch.autograd.grad(value, gradients.leaves, allow_unused=True)

    # Of the activations alone: gradients of parameters take as long again.
    wanted = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with hooks:
            grams = sum_moments(zeros, enumerate(feeds), watch, jobs)
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    means = {name: gram.moment / gram.tokens for name, gram in grams.items() if gram.tokens}
    # A table whose lookups do not reach the output has no metric of its own.
    return {
        name: means[name] + means[name + READ] if name + READ in means else means[name]
        for name in listened
        if name in means
    }


def _zeros(width: int) -> Gram:
    return Gram("output", np.zeros((width, width)))


def _probes(signature: Signature, outputs: Mapping[str, Tensor], feed: Feed, generator: torch.Generator) -> Tensor:
    """The sum of a probe of each output; what is drawn for one is independent of the others, so that the moments of the
    gradients add up. With several, each is a share, as in `core.distance.References`."""
    total = torch.zeros(())
    for output in signature.compared:
        if not outputs[output.name].requires_grad:
            # Whole numbers, or what no layer changes.
            continue
        value, counted = compared_output(signature, output, outputs[output.name], feed)
        own = probe(value, output.kind, generator, counted)
        if len(signature.compared) > 1 and output.kind != "logits":
            rows = compared_rows(value.detach().float(), output.kind, counted)
            rows = nn.functional.normalize(rows, dim=-1) if output.kind == "embedding" else rows
            own = own * (rows - rows.mean(0)).square().sum(-1).mean().clamp_min(1e-12).rsqrt()
        total = total + own
    return total


class _Gradients:
    """Shows moments of the gradients with respect to what layers of a module give, and of what others read, token by
    token.

    Args:
        module: whose parameters need no gradients.
        listened: the layer that is listened to for each name.
        read: by layer, the name for the moments of what it reads.
    """

    def __init__(self, module: nn.Module, listened: Mapping[str, str], read: Mapping[str, str]) -> None:
        self.module = module
        self.leaves: list[Tensor] = []
        """Outputs of layers that nothing before them makes differentiable."""
        self._observe: Observe = lambda name, gram: None
        self._mask: Tensor | None = None
        self.handles = [
            *(module.get_submodule(layer).register_forward_hook(self._hook(name)) for name, layer in listened.items()),
            *(
                module.get_submodule(layer).register_forward_pre_hook(self._reader(name), with_kwargs=True)
                for layer, name in read.items()
            ),
        ]

    @contextmanager
    def shown_to(self, observe: Observe, mask: Tensor | None) -> Iterator[None]:
        """What one batch gives inside the block is shown to `observe`; `mask` says which of its tokens count."""
        self._observe, self._mask = observe, mask
        try:
            yield
        finally:
            self.leaves.clear()

    def _show(self, name: str, rows: Tensor) -> None:
        self._observe(name, Gram("output", (rows.T @ rows).double().numpy(), len(rows)))

    def _reader(self, name: str) -> Callable[..., None]:
        def read(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._show(name, _finite_rows(first_input(args, kwargs), self._mask))

        return read

    def _hook(self, name: str) -> Callable[..., Tensor]:
        """The hook for a layer whose moments are shown under a name."""

        def add(gradient: Tensor) -> None:
            rows = _finite_rows(gradient, self._mask)
            norms = rows.norm(dim=1, keepdim=True)
            self._show(name, rows * (CLIP * norms.mean() / norms.clamp_min(1e-30)).clamp_max(1.0))

        def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                self.leaves.append(output.detach().requires_grad_())
                # What follows may write to what it is given, but not to a leaf.
                output = self.leaves[-1].clone()
            output.register_hook(add)
            return output

        return hook


def _finite_rows(tensor: Tensor, mask: Tensor | None) -> Tensor:
    rows = token_rows(tensor.detach().float().cpu(), mask)
    return rows[torch.isfinite(rows).all(1)]


def probe(output: Tensor, kind: OutputKind, generator: torch.Generator, counted: Tensor | None = None) -> Tensor:
    """A number whose gradients, over draws of the generator, have the curvature of the output's measure.

    Args:
        output: of the module.
        kind: what it is.
        generator: of the draws.
        counted: which positions count, batch x sequence; None if all do.
    """
    rows = compared_rows(output.float(), kind, counted)
    if not len(rows):
        return rows.sum()
    if kind == "logits" and rows.shape[-1] > 1:
        logs = rows.log_softmax(-1)
        labels = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        return logs.gather(1, labels).sum()
    if kind == "embedding":
        rows = nn.functional.normalize(rows, dim=-1)
    return (rows * torch.randn(rows.shape, generator=generator)).sum()
