"""What structures of coupled weights have in common: a cost for each unit of rank, and errors from their analysis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.structures.base import Curve, Option, Replacement
from lowrank.core.weight import Coupling, Group


@dataclass(frozen=True)
class Coupled(ABC):
    """A structure of several weights that a coupling ties to each other."""

    name: str

    @abstractmethod
    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """What it can make of a coupling, on the fold that judges; None without the moments, or for another kind of
        coupling."""

    @abstractmethod
    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """What replaces each weight of the group, by weight name."""

    @abstractmethod
    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for a unit of rank."""

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Every multiple below the full rank that costs less than the dense weights; empty if it does not fit."""
        record = analysis.coupling(group, self.name)
        if record is None or group.coupling is None:
            return Curve.empty(self.name)
        each = self.each(group.coupling, analysis)
        most = min(int(record.ranks[-1]) - 1, (analysis.params(group) - 1) // each)
        ranks = np.arange(multiple, most + 1, multiple, dtype=np.int64)
        return Curve(self.name, ranks, ranks * each, record.error_at(ranks))

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank up to the full one.

        Raises:
            ValueError: if the structure does not fit, or has no such rank.
        """
        record = analysis.coupling(group, self.name)
        if record is None or group.coupling is None:
            raise ValueError(f"{self.name} does not fit these weights")
        full = int(record.ranks[-1])
        if not 1 <= rank <= full:
            raise ValueError(f"its rank can be 1 to {full}")
        cost = rank * self.each(group.coupling, analysis)
        return Option(group.name, self.name, rank, cost, float(record.error_at(np.array([rank]))[0]))


def inputs_known(grams: Mapping[str, Folds], name: str) -> bool:
    """Whether there are moments of what a weight reads, of more than zeros."""
    folds = grams.get(name)
    return folds is not None and folds.fit.informs and folds.fit.side == "input"
