"""What the files beside a model say of its outputs: the names of its classes, and how token vectors become one."""

from __future__ import annotations

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.beside import beside
from lowrank.core.distance import Array

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


def class_names(dense: Backend, classes: int) -> list[str]:
    """The names of a head's classes, in order, as its config has them; their numbers where it has none."""
    named = beside(dense, "config.json").get("id2label")
    if isinstance(named, dict) and set(named) >= {str(i) for i in range(classes)}:
        return [str(named[str(i)]) for i in range(classes)]
    return [str(i) for i in range(classes)]


def pooling_of(dense: Backend) -> str:
    """How token vectors become one, as sentence-transformers notes it; the mean, if it does not."""
    entry = beside(dense, "1_Pooling/config.json")
    named = entry.get("pooling_mode")
    if isinstance(named, str):
        return named if named in POOLINGS.values() else "mean"
    chosen = [mode for key, mode in POOLINGS.items() if entry.get(key) is True]
    return chosen[0] if len(chosen) == 1 else "mean"


def pool(hidden: Array, how: str) -> Array:
    """One vector a sample, of outputs without padding: batch x tokens x width, batch x width, or maps of features."""
    if hidden.ndim == 4:
        return hidden.mean((2, 3), dtype=np.float64)
    if hidden.ndim != 3:
        return hidden.reshape(len(hidden), -1).astype(np.float64)
    if how in ("cls", "lasttoken"):
        return hidden[:, 0 if how == "cls" else -1].astype(np.float64)
    return hidden.max(1).astype(np.float64) if how == "max" else hidden.mean(1, dtype=np.float64)
