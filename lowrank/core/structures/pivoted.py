"""PivotedFactors: the same function as two factors, in rank^2 fewer numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.linalg.eigen import Vector
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import FactorKind, Option, Replacement, typed
from lowrank.core.structures.ranked import Ranked
from lowrank.core.truncation.pivoted import Pivoted, pivot, pivoted_cost
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class PivotedFactors(Ranked):
    """Rank (rows + cols) - rank^2 numbers: every rank below full saves. For linear layers.

    Ranks of weights with heads are multiples of those on offer, so that each head can have the same number of pivots
    and no gather is needed (see `permute`).
    """

    name: str = "pivoted"
    fits: ClassVar[str] = "one linear layer"
    factors: ClassVar[FactorKind] = Pivoted
    by_rank: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    nodes: ClassVar[int] = 2
    can_round: ClassVar[bool] = False
    """What follows from pivots is a difference of large numbers, and there is no freedom to make them even: measured,
    four bits of one such weight cost more than those of all others together."""

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Those of truncating the weight, below full rank."""
        record = analysis[group.weights[0]]
        linear = record.weight.stack == 1 and all(layer.kind == "linear" for layer in record.weight.layers)
        return record.error_curve[:-1] if linear and group.coupling is None else None

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Both factors without what the pivots save."""
        return pivoted_cost(*analysis[group.name].weight.shape, ranks)

    def step(self, group: Group, analysis: Analysis, multiple: int) -> int:
        """As many as every head can have alike."""
        return math.lcm(multiple, analysis.heads.get(group.name, 1))

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
        return weight.products * (products + table.at("concat", 0, weight.rows))

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of the matrix."""
        return option.rank, f"rank {option.rank} of {analysis[name].weight.full_rank}, pivoted{typed(option)}"
