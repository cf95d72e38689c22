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
from lowrank.core.structures.base import Curve, Option, Replacement, Structure, scaled_rows
from lowrank.core.weight import Group, Weight

STEP = 16


@dataclass(frozen=True)
class Residual(Structure):
    """The weight stays dense in the model; what is rounded becomes less by what the factors take out of it first.

    It exists only in a graph that is rounded, and its error is that of rounding alone (after SVDQuant, ICLR 2025).
    """

    name: str = "residual"
    is_residual: ClassVar[bool] = True

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Ranks in steps up to a half of break-even: beyond that eight bits would be cheaper."""
        weight = analysis[group.weights[0]].weight
        if len(group.weights) > 1 or not weight.is_linear or weight.stack > 1:
            return Curve.empty(self.name)
        step = STEP * multiple
        ranks = np.arange(step, break_even_rank(*weight.shape) // 2 + 1, step, dtype=np.int64)
        return Curve(self.name, ranks, weight.params + two_factor_cost(*weight.shape, 1) * ranks, np.zeros(len(ranks)))

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank from 1 to full."""
        weight = analysis[group.weights[0]].weight
        if len(group.weights) > 1 or not weight.is_linear or weight.stack > 1:
            raise ValueError("a residual is beside one linear layer")
        if not 1 <= rank <= weight.full_rank:
            raise ValueError(f"its rank can be 1 to {weight.full_rank}")
        return Option(group.name, self.name, rank, weight.params + two_factor_cost(*weight.shape, rank), 0.0)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """Nothing to replace: see `edge.quantize`."""
        return {}

    def file_bytes(
        self, ranks: NDArray[np.int64], numbers: NDArray[np.int64], weights: Sequence[Weight], dtype: str
    ) -> Vector:
        """The whole matrix in the type, and the factors beside it in eight bits."""
        dense, scales = sum(w.params for w in weights), 2.0 * scaled_rows(weights) + ranks
        nodes = len(weights) * NODES[dtype] + 2 * NODES["int8"]
        return dense * BITS[dtype] / 8 + numbers - dense + SCALE * scales + nodes

    def rounded_error(self, dtype: str, dense: Sequence[float], tail: Vector) -> Vector:
        """Steps are as wide as what is left of the matrix."""
        if dtype not in FORMATS:
            return super().rounded_error(dtype, dense, tail)
        return dense[0] * tail + even_error("int8")

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of the factors."""
        return option.rank, f"rank {option.rank} beside {option.dtype}"
