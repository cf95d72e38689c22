"""Fidelity: how far the compressed model's outputs are from the dense model's, on data that neither rank nor
factor saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.base import Backend
from lowrank.backends.inputs import MASK, Feed, Signature

Array = NDArray[Any]


class Runs(Protocol):
    """Anything that gives the main output of a model."""

    def run(self, feed: Feed) -> Array:
        """One forward pass."""
        ...


def measure_fidelity(dense: Backend, small: Runs, batches: Iterable[Feed]) -> dict[str, float]:
    """The measures that fit the model's output, averaged over the samples.

    `relative_error`: `|y - y'| / |y|` over all outputs. For hidden states, `cosine`: of the mean-pooled sentence
    embeddings. For logits, `kl` (of the dense distribution to the compressed one, in nats) and `agreement` of the most
    likely class or token.

    Returns:
        The measures by name, and `samples`.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}

    def add(name: str, values: Array) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
        weights[name] = weights.get(name, 0.0) + values.size

    difference, total, samples = 0.0, 0.0, 0
    logits = isinstance(dense.signature, Signature) and dense.signature.output == "logits"
    measures: Callable[..., None] = _logits if logits else _hidden
    for batch in batches:
        a, b = dense.run(batch), small.run(batch)
        samples += len(a)
        mask = batch.get(MASK)
        if mask is not None and a.shape[:2] == mask.shape:
            # What a model writes at padded positions is nobody's business.
            keep = (mask != 0)[..., None]
            a, b = a * keep, b * keep
        difference += float(np.square(a - b, dtype=np.float64).sum())
        total += float(np.square(a, dtype=np.float64).sum())
        measures(a, b, batch, add)
    if not samples:
        return {}
    result = {name: sums[name] / weights[name] for name in sums}
    return {
        "relative_error": (difference / total) ** 0.5 if total else 0.0,
        **result,
        "samples": float(samples),
    }


def pooled(hidden: Array, mask: Array | None) -> Array:
    """Mean over the tokens that are not padding: one vector a sentence."""
    if hidden.ndim < 3:
        return hidden
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.reshape(len(hidden), -1, hidden.shape[-1]).mean(1)
    weight = mask.astype(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / np.maximum(weight.sum(1), 1e-9)


def cosines(a: Array, b: Array) -> Array:
    """The cosine of the angle between each row of one array and the same row of another."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(norms, 1e-12)


def _hidden(a: Array, b: Array, batch: Feed, add: Callable[[str, Array], Any]) -> None:
    mask = batch.get(MASK)
    if a.ndim >= 2:
        add("cosine", cosines(pooled(a, mask), pooled(b, mask)))


def _logits(a: Array, b: Array, batch: Feed, add: Callable[[str, Array], Any]) -> None:
    from scipy.special import log_softmax  # pyright: ignore[reportMissingTypeStubs]

    log_p, log_q = log_softmax(a, axis=-1), log_softmax(b, axis=-1)
    add("kl", (np.exp(log_p) * (log_p - log_q)).sum(-1))
    add("agreement", (a.argmax(-1) == b.argmax(-1)).astype(np.float64))
