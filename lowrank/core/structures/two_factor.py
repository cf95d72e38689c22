"""TwoFactor: `W` as `left @ right`, optimal for the data that the analysis saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, Numbers, WeightAnalysis
from lowrank.core.cost import two_factor_cost
from lowrank.core.selection.timings import Timings, products_of
from lowrank.core.structures.base import Curve, Option, Replacement, Structure
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class TwoFactor(Structure):
    """Rank (rows + cols) numbers; the ranks on offer are those that are smaller than the dense matrix."""

    name: str = "two_factor"
    by_rank: ClassVar[bool] = True
    is_nested: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    even_latents: ClassVar[bool] = True
    nodes: ClassVar[int] = 2

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Ranks up to break-even, in steps of `multiple`; nothing for a group of several weights."""
        if len(group.weights) > 1:
            return Curve.empty(self.name)
        record = self._record(group, analysis)
        ranks = np.arange(multiple, record.break_even + 1, multiple, dtype=np.int64)
        costs = ranks * two_factor_cost(*record.weight.shape, 1, record.weight.stack)
        return Curve(self.name, ranks, costs, record.error_curve[ranks])

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank from 1 to full: lossless at full rank, and larger than the matrix beyond break-even."""
        if len(group.weights) > 1:
            raise ValueError("two factors hold one weight")
        record = self._record(group, analysis)
        weight = record.weight
        if not 1 <= rank <= weight.full_rank:
            raise ValueError(f"its rank can be 1 to {weight.full_rank}")
        cost = two_factor_cost(*weight.shape, rank, weight.stack)
        return Option(group.name, self.name, rank, cost, float(record.error_curve[rank]))

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The projection of the outputs on their leading directions."""
        name = group.weights[0]
        matrix = numbers.read(name)
        return {name: Replacement(self.name, analysis.truncated(name, matrix, rank))}

    @staticmethod
    def _record(group: Group, analysis: Analysis) -> WeightAnalysis:
        (name,) = group.weights
        return analysis[name]

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Two products in the place of each; a factored lookup is one of a thin row, and a product."""
        (weight,) = weights
        count, inputs, outputs = products_of(weight)
        lookups = len(weight.layers) - count
        pairs = count * (table.product(inputs, rank) + table.product(rank, outputs)) if count else 0.0
        return pairs + (lookups * table.product(rank, weight.rows) if lookups else 0.0)
