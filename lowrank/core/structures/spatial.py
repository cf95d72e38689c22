"""Spatial: a k x k convolution as a horizontal one and a vertical one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import FactorKind, Option, Replacement, typed
from lowrank.core.structures.ranked import Ranked
from lowrank.core.truncation.spatial import SpatialFactors, spatial_curve, spatial_directions, spatial_matrix
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True)
class Spatial(Ranked):
    """Rank (outputs x kernel rows + inputs x kernel columns) numbers; for convolutions with one group of channels."""

    name: str = "spatial"
    fits: ClassVar[str] = "one k x k convolution without groups of channels"
    factors: ClassVar[FactorKind] = SpatialFactors

    def measure_weight(self, weight: Weight, matrix: Matrix, folds: Folds | None) -> Vector | None:
        """Errors in the plain metric, or in that of whole patches: others cannot be compared between structures."""
        if weight.spatial is None or (folds is not None and folds.fit.side != "input"):
            return None
        return spatial_curve(weight, matrix, *((None, None) if folds is None else (folds.fit, folds.judge)))

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Those that were measured."""
        return analysis[group.weights[0]].curves.get(self.name) if len(group.weights) == 1 else None

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """A vertical kernel for each output and a horizontal one for each input, of every rank."""
        spatial = analysis[group.name].weight.spatial
        sizes = dict(spatial.sizes) if spatial else {}
        return ranks * (sizes["o"] * sizes["h"] + sizes["i"] * sizes["w"])

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
