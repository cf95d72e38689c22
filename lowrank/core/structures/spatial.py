"""Spatial: a k x k convolution as a horizontal one and a vertical one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import Curve, FactorKind, Option, Replacement, Structure, typed
from lowrank.core.truncation.spatial import SpatialFactors, spatial_curve, spatial_directions, spatial_matrix
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class Spatial(Structure):
    """Rank (outputs x kernel rows + inputs x kernel columns) numbers; for convolutions with one group of channels."""

    name: str = "spatial"
    factors: ClassVar[FactorKind] = SpatialFactors

    def measure_weight(self, weight: Weight, matrix: Matrix, folds: Folds | None) -> Vector | None:
        """Errors in the plain metric, or in that of whole patches: others cannot be compared between structures."""
        if weight.spatial is None or (folds is not None and folds.fit.side != "input"):
            return None
        return spatial_curve(weight, matrix, *((None, None) if folds is None else (folds.fit, folds.judge)))

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Every rank at which it is smaller than the kernel; nothing for other weights."""
        record = analysis[group.weights[0]]
        errors = record.curves.get(self.name)
        if len(group.weights) > 1 or errors is None:
            return Curve.empty(self.name)
        each = _cost(record.weight)
        largest = min((record.weight.params - 1) // each, len(errors) - 1)
        ranks = np.arange(multiple, largest + 1, multiple, dtype=np.int64)
        return Curve(self.name, ranks, ranks * each, errors[ranks])

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """Any rank from 1 to full."""
        record = analysis[group.weights[0]]
        errors = record.curves.get(self.name)
        if len(group.weights) > 1 or errors is None:
            raise ValueError("spatial factors hold one convolution of k x k")
        if not 1 <= rank < len(errors):
            raise ValueError(f"its rank can be 1 to {len(errors) - 1}")
        return Option(group.name, self.name, rank, rank * _cost(record.weight), float(errors[rank]))

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The projection of the spatial matrix on its leading directions."""
        (name,) = group.weights
        weight, matrix, folds = analysis[name].weight, numbers.read(name), analysis.grams.get(name)
        fit = folds.fit if folds and folds.fit.side == "input" else None
        chosen = spatial_directions(weight, matrix, fit)
        pair = chosen.truncate(spatial_matrix(weight, matrix), rank)
        return {name: Replacement(self.name, SpatialFactors(pair.left, pair.right))}

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """Its rank is that of another matrix than the spectrum's."""
        return None, f"two spatial convolutions, rank {option.rank}{typed(option)}"


def _cost(weight: Weight) -> int:
    sizes = dict(weight.spatial.sizes) if weight.spatial else {}
    return sizes["o"] * sizes["h"] + sizes["i"] * sizes["w"]
