"""Fidelity: how far the compressed model's outputs are from the dense model's, on data that neither rank nor
factor saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.backends.torch.inputs import MASK, Signature
from lowrank.calibrate.data import Batch


def measure_fidelity(
    dense: nn.Module, small: nn.Module, signature: Signature, batches: Iterable[Batch]
) -> dict[str, float]:
    """The measures that fit the model's output, averaged over the samples.

    `relative_error`: `|y - y'| / |y|` over all outputs. For hidden states, `cosine`: of the mean-pooled sentence
    embeddings.
    For logits, `kl` (of the dense distribution to the compressed one, in nats) and `agreement` of the most
    likely class or token.

    Returns:
        The measures by name, and `samples`.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.double().sum())
        weights[name] = weights.get(name, 0.0) + values.numel()

    difference, total, samples = 0.0, 0.0, 0
    measures: Callable[..., None] = _logits if signature.output == "logits" else _hidden
    with torch.no_grad():
        for batch in batches:
            a, b = signature.call(dense, batch).float(), signature.call(small, batch).float()
            samples += len(a)
            mask = batch.get(MASK)
            if mask is not None and a.shape[:2] == mask.shape:
                # What a model writes at padded positions is nobody's business.
                keep = (mask != 0).unsqueeze(-1).to(a.dtype)
                a, b = a * keep, b * keep
            difference += float((a - b).double().square().sum())
            total += float(a.double().square().sum())
            measures(a, b, batch, add)
    if not samples:
        return {}
    result = {name: sums[name] / weights[name] for name in sums}
    return {
        "relative_error": (difference / total) ** 0.5 if total else 0.0,
        **result,
        "samples": float(samples),
    }


def pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens that are not padding: one vector a sentence."""
    if hidden.dim() < 3:
        return hidden
    if mask is None:
        return hidden.flatten(1, -2).mean(1)
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def _hidden(a: Tensor, b: Tensor, batch: Batch, add: Callable[[str, Tensor], Any]) -> None:
    mask = batch.get(MASK)
    if a.dim() >= 2:
        add("cosine", torch.cosine_similarity(pooled(a, mask), pooled(b, mask), dim=-1))


def _logits(a: Tensor, b: Tensor, batch: Batch, add: Callable[[str, Tensor], Any]) -> None:
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    add("kl", (log_p.exp() * (log_p - log_q)).sum(-1))
    add("agreement", (a.argmax(-1) == b.argmax(-1)).float())
