"""How far one output of a model is from another: in the measure that fits what the output is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import OutputKind
from lowrank.core.linalg.eigen import Vector


class Reference:
    """The outputs of the dense model on some batches, and the loss of others against them.

    Where the dense model itself gives NaN or infinity there is nothing to compare with: those rows (samples, of
    embeddings; else tokens) count neither way.

    Args:
        outputs: one array a batch.
        kind: what they are.
    """

    def __init__(self, outputs: Sequence[NDArray[Any]], kind: OutputKind) -> None:
        self.kind: OutputKind = kind
        with np.errstate(over="ignore", invalid="ignore"):
            seen = [_seen(np.asarray(y, np.float64), kind) for y in outputs]
        # A logit of minus infinity is a probability of zero.
        self.sound = [~np.isnan(y).any(-1) if kind == "logits" else np.isfinite(y).all(-1) for y in seen]
        self.outputs = [y[sound] for y, sound in zip(seen, self.sound, strict=True)]
        # Of hidden states the squared norm makes the error relative; the other two are relative already.
        self.scale = sum(float(np.square(y).sum() if kind == "hidden" else y[..., 0].size) for y in self.outputs)

    def loss(self, outputs: Sequence[NDArray[Any]]) -> float:
        """Mean divergence KL(dense | other), mean 1 - cosine, or relative squared error; infinite if not a number."""
        lost = 0.0
        for dense, sound, other in zip(self.outputs, self.sound, outputs, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                lost += _lost(dense, _seen(np.asarray(other, np.float64), self.kind)[sound], self.kind)
        found = lost / self.scale if self.scale > 0 else 0.0
        return max(found, 0.0) if np.isfinite(found) else float("inf")


def _seen(output: NDArray[np.float64], kind: OutputKind) -> NDArray[np.float64]:
    """What is compared: log probabilities, unit vectors of the mean over tokens, or the numbers themselves."""
    if kind == "logits":
        shifted = output - output.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    if kind == "embedding":
        pooled: Vector = output.mean(1) if output.ndim == 3 else output
        return pooled / np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), 1e-300)
    return output


def _lost(dense: NDArray[np.float64], other: NDArray[np.float64], kind: OutputKind) -> float:
    if kind == "logits":
        return float((np.exp(dense) * (dense - other)).sum())
    if kind == "embedding":
        return float((1.0 - (dense * other).sum(-1)).sum())
    return float(np.square(other - dense).sum())
