"""What is compared of a module's output: `core.distance.rows_of` in torch, so that it has gradients."""

from __future__ import annotations

from torch import Tensor

from lowrank.core.distance import OutputKind


def compared_rows(output: Tensor, kind: OutputKind, counted: Tensor | None) -> Tensor:
    """The scores of each position that counts, the pooled vector of each sample, or the numbers of each position."""
    if kind == "embedding":
        return _pooled(output, counted)
    if output.dim() < 2:
        output = output.reshape(-1, 1)
    if kind == "logits" and output.dim() > 3:
        output = output.movedim(1, -1)
    output = counted_tokens(output, counted)
    return output.reshape(-1, output.shape[-1])


def counted_tokens(values: Tensor, counted: Tensor | None) -> Tensor:
    """Without the positions that a mask of the same batch and sequence leaves out."""
    fits = counted is not None and values.dim() > counted.dim() and values.shape[: counted.dim()] == counted.shape
    return values[counted] if fits else values


def _pooled(output: Tensor, counted: Tensor | None) -> Tensor:
    if output.dim() < 3:
        return output
    if counted is None or counted.shape != output.shape[:2]:
        return output.flatten(1, -2).mean(1)
    weights = counted.to(output.dtype)[..., None]
    return (output * weights).sum(1) / weights.sum(1).clamp_min(1)
