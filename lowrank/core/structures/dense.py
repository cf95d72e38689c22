"""Dense: leave the group as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import Curve, Option, Replacement, Structure, typed
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class Dense(Structure):
    """The full cost and no error. Its rank is written as the full rank."""

    name: str = "dense"
    is_dense: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """One point, for a weight by itself: a coupling leaves its weights to their own."""
        if group.coupling is not None:
            return Curve.empty(self.name)
        rank = max(analysis[name].weight.full_rank for name in group.weights)
        cost = analysis.params(group)
        return Curve(self.name, np.array([rank]), np.array([cost]), np.zeros(1))

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """The same point, whatever the rank says."""
        if group.coupling is not None:
            raise ValueError("weights stay dense each by itself")
        return self.curve(group, analysis, 1).option(group.name, 0)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """Nothing to replace."""
        return {}

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Of all products that apply a weight; a lookup is next to nothing."""
        return sum(table.dense(weight) for weight in weights)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """No rank."""
        return None, f"stays dense{typed(option)}"
