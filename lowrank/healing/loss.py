"""The loss of healing: the measures of `core.distance` in torch, so that they have gradients."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lowrank.core.distance import OutputKind


def output_loss(small: Tensor, dense: Tensor, kind: OutputKind, mask: Tensor | None = None) -> Tensor:
    """Mean divergence KL(dense | small) of a token, mean 1 - cosine of a pooled row, or relative squared error.

    These are the measures of `core.distance.Reference`, by which the ranks were chosen.

    Args:
        small: the output to be judged.
        dense: what it should be.
        kind: what they are.
        mask: which tokens count, batch x sequence; None if all do.

    Example:
        >>> output_loss(torch.eye(2), 3 * torch.eye(2), "embedding").item()
        0.0
    """
    small, dense = small.float(), dense.float()
    if kind == "logits":
        divergence = functional.kl_div(small.log_softmax(-1), dense.log_softmax(-1), reduction="none", log_target=True)
        return _tokens(divergence.sum(-1), mask).mean()
    if kind == "embedding":
        return (1 - functional.cosine_similarity(_pooled(small, mask), _pooled(dense, mask), dim=-1)).mean()
    rows, wanted = _tokens(small, mask), _tokens(dense, mask)
    return (rows - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


def hidden_loss(small: Tensor, dense: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relative squared error of hidden states: of each token its own, so that no large token outweighs all others."""
    if dense.dim() < 2:
        return (small.float() - dense.float()).square().mean()
    rows, wanted = _tokens(small.float(), mask), _tokens(dense.float(), mask)
    return ((rows - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()


def _tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Without the tokens that a mask of the same batch and sequence leaves out."""
    return values if mask is None or values.shape[: mask.dim()] != mask.shape else values[mask]


def _pooled(output: Tensor, mask: Tensor | None) -> Tensor:
    if output.dim() != 3:
        return output
    if mask is None or mask.shape != output.shape[:2]:
        return output.mean(1)
    weights = mask.to(output.dtype)[:, :, None]
    return (output * weights).sum(1) / weights.sum(1).clamp_min(1)
