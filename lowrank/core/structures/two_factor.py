"""TwoFactor: `W` as `left @ right`, optimal for the data that the analysis saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.cost import two_factor_cost
from lowrank.core.linalg.eigen import Vector
from lowrank.core.selection.timings import Timings, products_of
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.ranked import Ranked
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class TwoFactor(Ranked):
    """Rank (rows + cols) numbers: it pays up to about half the full rank of a square matrix."""

    name: str = "two_factor"
    fits: ClassVar[str] = "one weight"
    by_rank: ClassVar[bool] = True
    is_nested: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    even_latents: ClassVar[bool] = True
    nodes: ClassVar[int] = 2

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Those of truncating the weight."""
        return analysis[group.weights[0]].error_curve if len(group.weights) == 1 else None

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Both factors, for each matrix of a stack."""
        weight = analysis[group.name].weight
        return ranks * two_factor_cost(*weight.shape, 1, weight.stack)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The projection of the outputs on their leading directions."""
        name = group.weights[0]
        matrix = numbers.read(name)
        return {name: Replacement(self.name, analysis.truncated(name, matrix, rank))}

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Two products in the place of each; a factored lookup is one of a thin row, and a product."""
        (weight,) = weights
        count, inputs, outputs = products_of(weight)
        lookups = weight.lookups
        pairs = count * (table.product(inputs, rank) + table.product(rank, outputs)) if count else 0.0
        return pairs + (lookups * table.product(rank, weight.rows) if lookups else 0.0)
