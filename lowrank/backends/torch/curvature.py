"""How the output of a module bends with what its layers give: second moments of gradients, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.torch.inputs import call, first_input, mask_of, token_rows
from lowrank.core.distance import OutputKind
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.weight import Weight

CLIP = 10.0
"""Of the mean norm: one token's gradient counts at most this much, so that no outlier decides."""


def output_curvature(
    module: nn.Module, signature: Signature, kind: OutputKind, weights: Sequence[Weight], feeds: Sequence[Feed]
) -> dict[str, Matrix]:
    """`E[g g']` of the gradient of the output's own measure with respect to what each layer gives, rows x rows.

    The Gauss-Newton matrix of the measure by sampling: for logits the gradient of the log probability of a label drawn
    from the model itself (its Fisher information); for an embedding and for hidden states that of a random projection
    of the unit vector, or of the numbers (Martens 2020, section 9; K-FAC uses the same moments). Token by token: never
    of gradients summed over a batch, whose rank collapses.

    Of a table whose head gives the logits, what the head reads is added, `E[h h']`. To second order a change D of the
    rows costs the head `sum_v p_v (D_v' h)^2` and the lookups `sum_v f_v (D_v' g)^2`; with entries that are predicted
    about as often as they are read, p = f, both are one metric.
    """
    heads = {
        layer.name: weight.name
        for weight in weights
        for layer in weight.layers
        if weight.is_table and layer.kind == "linear" and kind == "logits"
    }
    moments: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    leaves: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    mask: Tensor | None = None

    def listen(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
                leaves.append(output)

            def add(gradient: Tensor) -> None:
                rows = token_rows(gradient.detach().float().cpu(), mask)
                rows = rows[torch.isfinite(rows).all(1)]
                norms = rows.norm(dim=1, keepdim=True)
                rows = rows * (CLIP * norms.mean() / norms.clamp_min(1e-30)).clamp_max(1.0)
                moments[name] = moments.get(name, torch.zeros(())) + (rows.T @ rows).double()
                counts[name] = counts.get(name, 0) + len(rows)

            output.register_hook(add)
            return output

        return hook

    read: dict[str, tuple[Tensor, int]] = {}

    def listen_to_head(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            rows = token_rows(first_input(args, kwargs).detach().float().cpu(), mask)
            rows = rows[torch.isfinite(rows).all(1)]
            moment, count = read.get(name, (torch.zeros(()), 0))
            read[name] = moment + (rows.T @ rows).double(), count + len(rows)

        return hook

    handles: list[Any] = []
    for weight in weights:
        listened = next((x for x in weight.layers if x.kind == "lookup"), weight.layers[0])
        handles.append(module.get_submodule(listened.name).register_forward_hook(listen(weight.name)))
    for layer, name in heads.items():
        hook = listen_to_head(name)
        handles.append(module.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with torch.enable_grad():
            for feed in feeds:
                mask = mask_of(feed)
                value = probe(call(signature, module, feed), kind, generator)
                # Into the activations alone: the module's parameters keep the gradients that they have.
                inputs = [p for p in module.parameters() if p.requires_grad]
                torch.autograd.grad(value, [*inputs, *leaves], allow_unused=True)
                leaves.clear()
    finally:
        for handle in handles:
            handle.remove()
    found = {name: moment / max(counts[name], 1) for name, moment in moments.items()}
    # A table whose lookups do not reach the output has no metric of its own.
    for name in found.keys() & read.keys():
        moment, count = read[name]
        found[name] = found[name] + moment / max(count, 1)
    return {name: moment.numpy() for name, moment in found.items()}


def probe(output: Tensor, kind: OutputKind, generator: torch.Generator) -> Tensor:
    """A number whose gradients, over draws of the generator, have the curvature of the output's measure."""
    output = output.float()
    if kind == "logits":
        logs = output.log_softmax(-1)
        flat = logs.detach().exp().reshape(-1, logs.shape[-1])
        labels = torch.multinomial(flat, 1, generator=generator)
        return logs.reshape(flat.shape).gather(1, labels).sum()
    if kind == "embedding":
        pooled = output.mean(1) if output.dim() == 3 else output
        output = nn.functional.normalize(pooled, dim=-1)
    return (output * torch.randn(output.shape, generator=generator)).sum()
