"""Residual: `W = Q + A B`, the whole matrix in few bits and two factors of eight bits beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.cost import break_even_rank, two_factor_cost
from lowrank.core.linalg.eigen import Vector
from lowrank.core.rounding.cost import BITS, NODES
from lowrank.core.rounding.formats import FORMATS, SCALE, even_error
from lowrank.core.structures.base import Curve, Option, Replacement, scaled_rows
from lowrank.core.structures.ranked import Ranked
from lowrank.core.weight import Group, Weight

STEP = 16


@dataclass(frozen=True)
class Residual(Ranked):
    """The weight stays dense in the model; what is rounded becomes less by what the factors take out of it first.

    It exists only in a graph that is rounded, and its error is that of rounding alone (after SVDQuant, ICLR 2025).
    """

    name: str = "residual"
    fits: ClassVar[str] = "one linear layer"
    is_residual: ClassVar[bool] = True

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """None but those of rounding."""
        weight = analysis[group.weights[0]].weight
        linear = len(group.weights) == 1 and weight.is_linear and weight.stack == 1
        return np.zeros(weight.full_rank + 1) if linear else None

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The whole matrix, and two factors beside it."""
        weight = analysis[group.name].weight
        return weight.params + two_factor_cost(*weight.shape, 1) * ranks

    def step(self, group: Group, analysis: Analysis, multiple: int) -> int:
        """Few ranks, as they are hardly told apart."""
        return STEP * multiple

    def pays(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Up to a half of break-even: beyond that eight bits for the whole matrix would be cheaper."""
        return ranks <= break_even_rank(*analysis[group.name].weight.shape) // 2

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """Nothing to replace: see `edge.quantize`."""
        return {}

    def file_bytes(self, curve: Curve, weights: Sequence[Weight]) -> Vector:
        """The whole matrix in the type, and the factors beside it in eight bits."""
        dense, scales = sum(w.params for w in weights), 2.0 * scaled_rows(weights) + curve.ranks
        nodes = len(weights) * NODES[curve.dtype] + 2 * NODES["int8"]
        return dense * BITS[curve.dtype] / 8 + curve.costs - dense + SCALE * scales + nodes

    def rounded_error(self, dtype: str, dense: Sequence[float], tail: Vector) -> Vector:
        """Steps are as wide as what is left of the matrix."""
        if dtype not in FORMATS:
            return super().rounded_error(dtype, dense, tail)
        return dense[0] * tail + even_error("int8")

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of the factors."""
        return option.rank, f"rank {option.rank} beside {option.dtype}"
