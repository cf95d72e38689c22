"""How far one output of a model is from another: in the measure that fits what the output is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
OutputKind = Literal["logits", "embedding", "hidden"]
"""`logits`: scores of classes or tokens. `embedding`: token vectors that are pooled, and compared by their angle.
`hidden`: anything else."""


class Reference:
    """The outputs of the dense model on some batches, and the loss of others against them.

    Rows (samples, of embeddings; else tokens) in which the dense model itself gives NaN or infinity are left out:
    there is nothing to compare with.

    Args:
        outputs: one array a batch.
        kind: what they are.
    """

    def __init__(self, outputs: Sequence[Array], kind: OutputKind) -> None:
        self.kind: OutputKind = kind
        forms = [_form(y, kind) for y in outputs]
        # A logit of minus infinity is a probability of zero.
        self.sound = [~np.isnan(y).any(-1) if kind == "logits" else np.isfinite(y).all(-1) for y in forms]
        self.outputs = [y[sound] for y, sound in zip(forms, self.sound, strict=True)]
        # Of hidden states the squared norm makes the error relative; the other two are relative already.
        self.scale = sum(squared_norm(y) if kind == "hidden" else float(y[..., 0].size) for y in self.outputs)

    def loss(self, outputs: Sequence[Array]) -> float:
        """Mean divergence KL(dense | other), mean 1 - cosine, or relative squared error; infinite if not a number."""
        total = 0.0
        for dense, sound, other in zip(self.outputs, self.sound, outputs, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                total += _distance(dense, _form(other, self.kind)[sound], self.kind)
        loss = total / self.scale if self.scale > 0 else 0.0
        return max(loss, 0.0) if np.isfinite(loss) else float("inf")


def _form(output: Array, kind: OutputKind) -> Array:
    """What is compared, in float64: log probabilities, unit vectors of the mean over tokens, or the numbers."""
    values = np.asarray(output, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "logits":
            return log_probabilities(values)
        return unit(pooled(values)) if kind == "embedding" else values


def _distance(dense: Array, other: Array, kind: OutputKind) -> float:
    """The sum over all rows of two outputs' forms."""
    if kind == "logits":
        return float(divergence_terms(dense, other).sum())
    return float((1.0 - (dense * other).sum(-1)).sum()) if kind == "embedding" else squared_norm(other - dense)


def log_probabilities(logits: Array) -> Array:
    """The logarithm of the softmax over the last axis, in the type of the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence_terms(log_p: Array, log_q: Array) -> Array:
    """What each class adds to the Kullback-Leibler divergence KL(p | q), in nats, of log probabilities."""
    return np.exp(log_p) * (log_p - log_q)


def squared_norm(values: Array) -> float:
    """The sum of all squares, in float64."""
    return float(np.square(values, dtype=np.float64).sum())


def pooled(hidden: Array, mask: Array | None = None) -> Array:
    """The mean over the tokens of each sample: samples x width.

    Args:
        hidden: samples x tokens x width; more axes between count as tokens, and two axes are left as they are.
        mask: samples x tokens; tokens where it is 0 are padding and do not count. One of another shape is ignored.
    """
    if hidden.ndim < 3:
        return hidden
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.reshape(len(hidden), -1, hidden.shape[-1]).mean(1)
    weight = mask.astype(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / np.maximum(weight.sum(1), 1e-9)


def unit(vectors: Array) -> Array:
    """The vectors along the last axis at length 1; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosines(a: Array, b: Array) -> Array:
    """The cosine of the angle between each row of one array and the same row of another."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(norms, 1e-12)
