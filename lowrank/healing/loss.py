"""The loss of healing: the measures of `core.distance` in torch, so that they have gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.torch.compared import compared_rows, counted_tokens
from lowrank.core.distance import OutputKind


def output_loss(
    small: Tensor, dense: Tensor, kind: OutputKind, counted: Tensor | None = None, spread: float = 1.0
) -> tuple[Tensor, int]:
    """What is lost in all rows together, and how many rows there are.

    Over the rows of all batches this is the loss of `core.distance.Reference`, by which the ranks were chosen: the
    divergence KL(dense | small) of a position, or the squared distance of unit vectors or of numbers.

    Args:
        small: the output to be judged.
        dense: what it should be.
        kind: what they are, by `core.distance.kind_of`.
        counted: which positions count, batch x sequence; None if all do.
        spread: that of the dense outputs, see `Reference`.

    Example:
        >>> total, rows = output_loss(torch.eye(2), 3 * torch.eye(2), "embedding")
        >>> total.item(), rows
        (0.0, 2)
    """
    rows, wanted = (compared_rows(output.float(), kind, counted) for output in (small, dense))
    if kind == "logits":
        logs, others = (output.log_softmax(-1) for output in (rows, wanted))
        shares = others.exp()
        # A class that the dense model never gives adds nothing.
        return torch.where(shares == 0, 0.0, shares * (others - logs)).sum(), len(rows)
    if kind == "embedding":
        rows, wanted = functional.normalize(rows, dim=-1), functional.normalize(wanted, dim=-1)
    return (rows - wanted).square().sum() / spread, len(rows)


def hidden_loss(small: Tensor, dense: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relative squared error of hidden states: of each token its own, so that no large token outweighs all others."""
    if dense.dim() < 2:
        return (small.float() - dense.float()).square().mean()
    rows, wanted = counted_tokens(small.float(), mask), counted_tokens(dense.float(), mask)
    return ((rows - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()
