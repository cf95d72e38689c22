"""PivotedFactors: the same function as two factors, in rank^2 fewer numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import Curve, FactorKind, Option, Replacement, Structure, typed
from lowrank.core.truncation.pivoted import Pivoted, pivot, pivoted_cost
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class PivotedFactors(Structure):
    """Rank (rows + cols) - rank^2 numbers: every rank below full saves. For linear layers.

    Ranks of weights with heads are multiples of those on offer, so that each head can have the same number of pivots
    and no gather is needed (see `absorb`).
    """

    name: str = "pivoted"
    factors: ClassVar[FactorKind] = Pivoted
    by_rank: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    nodes: ClassVar[int] = 2
    can_round: ClassVar[bool] = False
    """What follows from pivots is a difference of large numbers, and there is no freedom to make them even: measured,
    four bits of one such weight cost more than those of all others together."""

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Every rank below full, or as many as heads allow."""
        weight = analysis[group.weights[0]].weight
        if group.coupling is not None or not _fits(weight):
            return Curve.empty(self.name)
        step = math.lcm(multiple, analysis.heads.get(weight.name, 1))
        ranks = np.arange(step, weight.full_rank, step, dtype=np.int64)
        costs = np.array([pivoted_cost(*weight.shape, int(rank)) for rank in ranks], dtype=np.int64)
        return Curve(self.name, ranks, costs, analysis[weight.name].error_curve[ranks])

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank below full."""
        record = analysis[group.weights[0]]
        if group.coupling is not None or not _fits(record.weight):
            raise ValueError("pivoted factors hold one weight of a linear layer")
        if not 1 <= rank < record.weight.full_rank:
            raise ValueError(f"its rank can be 1 to {record.weight.full_rank - 1}")
        cost = pivoted_cost(*record.weight.shape, rank)
        return Option(group.name, self.name, rank, cost, float(record.error_curve[rank]))

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The projection on the leading directions, pivoted."""
        (name,) = group.weights
        matrix = numbers.read(name)
        return {name: Replacement(self.name, pivot(analysis.truncated(name, matrix, rank)))}

    def indices(self, weights: Sequence[Weight]) -> int:
        """One for each output, which say where it is."""
        return sum(weight.rows for weight in weights)

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Two products, and one concatenation of what they give."""
        (weight,) = weights
        products = table.product(weight.cols, rank) + table.product(rank, weight.rows - rank)
        return products + table.at("concat", 0, weight.rows)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of the matrix."""
        return option.rank, f"rank {option.rank} of {analysis[name].weight.full_rank}, pivoted{typed(option)}"


def _fits(weight: Weight) -> bool:
    return weight.stack == 1 and all(layer.kind == "linear" for layer in weight.layers)
