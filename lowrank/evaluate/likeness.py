"""How like the dense model's outputs another model's are: a number for each output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.core.distance import Array, OutputKind


@dataclass(frozen=True)
class Likeness:
    """How like one output of the dense model another model's is."""

    output: str
    """Its name."""
    kind: OutputKind
    parts: Array
    """For each sample what is alike, and the most that there could be."""
    figures: Mapping[str, float]
    """The measures that fit the kind of output, by name."""

    @property
    def fidelity(self) -> float:
        """From 0 to 1; not a number where an output is not finite."""
        return alike(self.parts)


def worst_of(found: Sequence[Likeness]) -> Likeness:
    """The output that is least like; what is no number comes before all others, and of equal ones the first."""
    return min(found, key=lambda each: each.fidelity if math.isfinite(each.fidelity) else -1.0)


def alike(parts: Array) -> float:
    """The sum of the first numbers of all rows over the sum of the second, and at least 0."""
    same, most = parts.sum(0, dtype=np.float64)
    share = float(same / most) if most else 1.0
    return share if math.isnan(share) else max(share, 0.0)
