"""Residual: `W = Q + A B`, the whole matrix in few bits and two factors of eight bits beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.cost import break_even_rank, two_factor_cost
from lowrank.core.structures.base import Curve, Option, Replacement
from lowrank.core.weight import Group

STEP = 16


@dataclass(frozen=True, slots=True)
class Residual:
    """The weight stays dense in the model; what is rounded becomes less by what the factors take out of it first.

    It exists only in a graph that is rounded, and its error is that of rounding alone (after SVDQuant, ICLR 2025).
    """

    name: str = "residual"

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
