"""Curvature of a module's output with respect to what its layers give: second moments of gradients, without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.compared import compared_rows
from lowrank.backends.torch.hooks import first_input, removed_after
from lowrank.backends.torch.inputs import call, compared_output, mask_of, token_rows
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.weight import Weight

CLIP = 10.0
"""Of the mean norm: one token's gradient counts at most this much, so that no outlier decides."""


def output_curvature(
    module: nn.Module, signature: Signature, weights: Sequence[Weight], feeds: Sequence[Feed]
) -> dict[str, Matrix]:
    """`E[g g']` of the gradient of the output's own measure with respect to what each layer gives, rows x rows.

    The Gauss-Newton matrix of the measure by sampling: for logits the gradient of the log probability of a label drawn
    from the model itself (its Fisher information); for an embedding and for values that of a random projection of
    the unit vector, or of the numbers (Martens 2020, section 9; K-FAC uses the same moments). Token by token: never
    of gradients summed over a batch, whose rank collapses.

    Of a table whose head gives the logits, what the head reads is added, `E[h h']`. To second order a change D of the
    rows costs the head `sum_v p_v (D_v' h)^2` and the lookups `sum_v f_v (D_v' g)^2`; with entries that are predicted
    about as often as they are read, p = f, both are one metric.
    """
    heads = {
        layer.name: weight.name
        for weight in weights
        for layer in weight.layers
        if weight.is_table and layer.kind == "linear" and any(output.kind == "logits" for output in signature.compared)
    }
    gradients, inputs = _Gradients(), _RowMoments()
    handles: list[RemovableHandle] = []
    for weight in weights:
        listened = next((x for x in weight.layers if x.kind == "lookup"), weight.layers[0])
        handles.append(module.get_submodule(listened.name).register_forward_hook(gradients.hook(weight.name)))
    for layer, name in heads.items():

        def read(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            inputs.add(name, _finite_rows(first_input(args, kwargs), gradients.mask))

        handles.append(module.get_submodule(layer).register_forward_pre_hook(read, with_kwargs=True))
    generator = torch.Generator().manual_seed(0)
    with removed_after(handles), torch.enable_grad():
        for feed in feeds:
            gradients.mask = mask_of(feed)
            value = _probes(signature, call(signature, module, feed), feed, generator)
            if not value.requires_grad:
                return {}
            # Into the activations alone: the module's parameters keep the gradients that they have.
            parameters = [p for p in module.parameters() if p.requires_grad]
            torch.autograd.grad(value, [*parameters, *gradients.leaves], allow_unused=True)
            gradients.leaves.clear()
    means, read_means = gradients.moments.means(), inputs.means()
    # A table whose lookups do not reach the output has no metric of its own.
    return {name: (mean + read_means[name] if name in read_means else mean).numpy() for name, mean in means.items()}


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


class _RowMoments:
    """Second moments of rows by name, summed over batches in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Add the rows of one batch."""
        moment, count = self._sums.get(name, (torch.zeros(()), 0))
        self._sums[name] = moment + (rows.T @ rows).double(), count + len(rows)

    def means(self) -> dict[str, Tensor]:
        """The moment of one row, by name."""
        return {name: moment / max(count, 1) for name, (moment, count) in self._sums.items()}


class _Gradients:
    """Moments of the gradients with respect to what layers give, token by token."""

    def __init__(self) -> None:
        self.moments = _RowMoments()
        self.mask: Tensor | None = None
        self.leaves: list[Tensor] = []
        """Outputs of layers that nothing before them makes differentiable."""

    def hook(self, name: str) -> Callable[..., Tensor]:
        """The hook for a layer whose moments are counted under a name."""

        def add(gradient: Tensor) -> None:
            rows = _finite_rows(gradient, self.mask)
            norms = rows.norm(dim=1, keepdim=True)
            self.moments.add(name, rows * (CLIP * norms.mean() / norms.clamp_min(1e-30)).clamp_max(1.0))

        def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                self.leaves.append(output)
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
