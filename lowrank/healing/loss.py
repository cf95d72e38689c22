"""The loss of healing: the measures of `core.distance` in torch, so that they have gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.outputs import Output
from lowrank.backends.torch.compared import compared_rows, counted_tokens
from lowrank.backends.torch.inputs import compared_output
from lowrank.core.distance import Batches, OutputKind, Reference, information_of, kind_of


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


@dataclass(frozen=True, slots=True)
class OutputMeasure:
    """How one output is measured in healing."""

    output: Output
    """With its kind by its shape, too."""
    spread: float = 1.0
    """That of the dense outputs; see `core.distance.Reference`."""
    weight: float = 1.0
    """What its loss is multiplied by; see `core.distance.References`."""

    def lost(self, signature: Signature, small: Tensor, dense: Tensor, feed: Feed) -> tuple[Tensor, int]:
        """What is lost in all rows of a batch together, weighted, and how many rows there are.

        Args:
            signature: of the model.
            small: the output to be judged.
            dense: what it should be; of an embedding the vectors that are left of it by pooling.
            feed: the batch.
        """
        small, counted = compared_output(signature, self.output, small, feed)
        dense, _ = compared_output(signature, self.output, dense, feed)
        total, rows = output_loss(small, dense, self.output.kind, counted, self.spread)
        return self.weight * total, rows


def pooled_output(signature: Signature, output: Output, value: Tensor, feed: Feed) -> Tensor:
    """What is kept of an output: of an embedding the vector of each sample, else all of it."""
    if output.kind != "embedding":
        return value
    value, counted = compared_output(signature, output, value, feed)
    return compared_rows(value.float(), "embedding", counted)


def measures_of(signature: Signature, outputs: Mapping[str, Batches], feeds: Sequence[Feed]) -> list[OutputMeasure]:
    """The measures of all outputs that count, each scaled as in `core.distance.References`.

    Args:
        signature: of the model.
        outputs: the dense model's on some batches, by name; of embeddings the vectors that are left of them by pooling.
        feeds: the batches.
    """
    measures: list[OutputMeasure] = []
    several = sum(output.kind != "choices" for output in signature.compared)
    for output in signature.compared:
        if output.kind == "choices":
            # Whole numbers have no gradient.
            continue
        given, counted = outputs[output.name], [signature.counted(feed, output) for feed in feeds]
        kind = kind_of([given[0]], output.kind)
        spread = 1.0 if kind == "logits" else Reference(list(given), kind, counted, output.over_positions).spread
        scale = information_of(given, counted) if kind == "logits" and several > 1 else 1.0
        measures.append(OutputMeasure(replace(output, kind=kind), spread, 1 / (several * scale)))
    return measures


def hidden_loss(small: Tensor, dense: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relative squared error of hidden states: of each token its own, so that no large token outweighs all others."""
    if dense.dim() < 2:
        return (small.float() - dense.float()).square().mean()
    rows, wanted = counted_tokens(small.float(), mask), counted_tokens(dense.float(), mask)
    return ((rows - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()
