"""What structures with a rank have in common: one error and one cost at each rank, and the ranks that pay."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis
from lowrank.core.linalg.eigen import Vector
from lowrank.core.structures.base import Curve, Option, Structure
from lowrank.core.weight import Group


@dataclass(frozen=True)
class Ranked(Structure):
    """A structure whose errors and costs are known at every rank up to a full one."""

    fits: ClassVar[str]
    """The weights that it is for, in words."""

    @abstractmethod
    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Squared relative errors at rank 0, 1, ... up to the largest there is; None if it does not fit the group."""

    @abstractmethod
    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many numbers it stores at some ranks."""

    def step(self, group: Group, analysis: Analysis, multiple: int) -> int:
        """What ranks on offer are multiples of."""
        return multiple

    def pays(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """At which ranks it is worth having: those at which it holds fewer numbers than the dense weights."""
        return self.cost(group, analysis, ranks) < analysis.params(group)

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Every rank in steps at which it pays; empty if it does not fit the group."""
        errors = self.errors(group, analysis)
        if errors is None:
            return Curve.empty(self.name)
        step = self.step(group, analysis, multiple)
        ranks = np.arange(step, len(errors), step, dtype=np.int64)
        ranks = ranks[self.pays(group, analysis, ranks)]
        return Curve(self.name, ranks, self.cost(group, analysis, ranks), errors[ranks])

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank from 1 to the largest, whether it pays or not.

        Raises:
            ValueError: if it does not fit the group, or has no such rank.
        """
        errors = self.errors(group, analysis)
        if errors is None:
            raise ValueError(f"{self.name} is for {self.fits}")
        if not 1 <= rank < len(errors):
            raise ValueError(f"its rank can be 1 to {len(errors) - 1}")
        ranks = np.array([rank])
        return Curve(self.name, ranks, self.cost(group, analysis, ranks), errors[ranks]).option(group.name, 0)
