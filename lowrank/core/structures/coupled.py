"""What structures of coupled weights have in common: a cost for each unit of rank, and errors from their analysis."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Folds
from lowrank.core.linalg.eigen import Vector
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import FactorKind, Option, typed
from lowrank.core.structures.ranked import Ranked
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.weight import Coupling, Group, Weight


@dataclass(frozen=True)
class Coupled(Ranked):
    """A structure of several weights that a coupling ties to each other."""

    @abstractmethod
    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for a unit of rank."""

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Those that its analysis of the coupling has, also between the ranks that were measured."""
        record = analysis.coupling(group, self.name)
        return None if record is None else record.error_at(np.arange(int(record.ranks[-1]) + 1, dtype=np.int64))

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of every unit of rank."""
        assert group.coupling is not None
        return ranks * self.each(group.coupling, analysis)

    def pays(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where it holds fewer numbers, below the rank that the weights have now."""
        record = analysis.coupling(group, self.name)
        assert record is not None
        return super().pays(group, analysis, ranks) & (ranks < record.ranks[-1])


@dataclass(frozen=True)
class FewerChannels(Coupled):
    """A structure of attention with fewer channels in each head."""

    factors: ClassVar[FactorKind] = Narrow
    fixed_order: ClassVar[bool] = True
    per_head: ClassVar[bool] = True
    channels: ClassVar[int] = 1
    """Of a head, in a unit of rank."""
    unit: ClassVar[str] = "channels"
    """What a unit of rank is called."""

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Fewer channels a head: less in the weights, and in what attention does between them."""
        coupling = group.coupling
        assert coupling is not None
        (first, second), width, heads, kv_heads = weights, rank * self.channels, coupling.heads, coupling.kv_heads
        if coupling.kind == "value_output":
            full, inside = first.rows // kv_heads, "mixture"
            products = table.product(first.cols, kv_heads * width) + table.product(heads * width, second.rows)
        else:
            full, inside = first.rows // heads, "scores"
            products = table.product(first.cols, heads * width) + table.product(second.cols, kv_heads * width)
        return first.products * (products + table.at(inside, heads, width) - table.at(inside, heads, full))

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """The channels of all heads of the weight together."""
        coupling = analysis.groups[option.group].coupling
        if coupling is None or name in analysis.heads:
            heads = analysis.heads.get(name, 1)
        else:
            heads = coupling.heads if name == coupling.weights[0] else coupling.kv_heads
        rank = min(self.channels * option.rank * heads, analysis[name].weight.full_rank)
        return rank, f"{option.rank} {self.unit} in each of {heads} heads{typed(option)}"


def inputs_known(grams: Mapping[str, Folds], name: str) -> bool:
    """Whether there are moments of what a weight reads, of more than zeros."""
    folds = grams.get(name)
    return folds is not None and folds.fit.informs and folds.fit.side == "input"
