"""Fidelity: how far the compressed model's outputs are from the dense model's, on data that neither ranks nor
factors were chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import MASK, Feed
from lowrank.core.distance import Array, cosines, divergence_terms, log_probabilities, pooled, squared_norm


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
    counts: dict[str, int] = {}
    difference, total, samples = 0.0, 0.0, 0
    for batch in batches:
        a, b = dense.run(batch), small.run(batch)
        samples += len(a)
        mask = batch.get(MASK)
        if mask is not None and a.shape[:2] == mask.shape:
            # What a model gives at padded positions does not matter.
            tokens = (mask != 0)[..., None]
            a, b = a * tokens, b * tokens
        difference += squared_norm(a - b)
        total += squared_norm(a)
        for name, values in (_of_logits(a, b) if dense.output_kind == "logits" else _of_hidden(a, b, mask)).items():
            sums[name] = sums.get(name, 0.0) + float(values.sum(dtype=np.float64))
            counts[name] = counts.get(name, 0) + values.size
    if not samples:
        return {}
    return {
        "relative_error": (difference / total) ** 0.5 if total else 0.0,
        **{name: sums[name] / counts[name] for name in sums},
        "samples": float(samples),
    }


def random_feeds(dense: Backend) -> list[Feed]:
    """Some random batches for a model that comes without data."""
    signature = signature_of(dense)
    return [signature.example(4, min(16, signature.max_sequence), seed) for seed in range(4)]


def _of_logits(a: Array, b: Array) -> dict[str, Array]:
    """The measures of each row of logits."""
    divergences = divergence_terms(log_probabilities(a), log_probabilities(b)).sum(-1)
    return {"kl": divergences, "agreement": a.argmax(-1) == b.argmax(-1)}


def _of_hidden(a: Array, b: Array, mask: Array | None) -> dict[str, Array]:
    """The measures of each sample's hidden states; none where the output is one number a sample."""
    return {"cosine": cosines(pooled(a, mask), pooled(b, mask))} if a.ndim >= 2 else {}
