"""What the tasks must know of a model's outputs: the names of its classes, and how token vectors become one."""

from __future__ import annotations

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.beside import beside
from lowrank.backends.inputs import Pooling
from lowrank.core.distance import Array


def class_names(dense: Backend, classes: int) -> list[str]:
    """The names of a head's classes, in order, as its config has them; their numbers where it has none."""
    named = beside(dense, "config.json").get("id2label")
    if isinstance(named, dict) and set(named) >= {str(i) for i in range(classes)}:
        return [str(named[str(i)]) for i in range(classes)]
    return [str(i) for i in range(classes)]


def pool(hidden: Array, how: Pooling | None) -> Array:
    """One vector a sample, of outputs without padding: batch x tokens x width, batch x width, or maps of features;
    of tokens the mean, unless it is said how."""
    if hidden.ndim == 4:
        return hidden.mean((2, 3), dtype=np.float64)
    if hidden.ndim != 3:
        return hidden.reshape(len(hidden), -1).astype(np.float64)
    if how in ("cls", "lasttoken"):
        return hidden[:, 0 if how == "cls" else -1].astype(np.float64)
    return hidden.max(1).astype(np.float64) if how == "max" else hidden.mean(1, dtype=np.float64)
