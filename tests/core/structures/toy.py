"""Chosen inputs: a toy structure that the package does not have, in one file as CONTRIBUTING.md tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector, tail_shares
from lowrank.core.selection.timings import Timings
from lowrank.core.structures.base import FactorKind, Option, Replacement, typed
from lowrank.core.structures.ranked import Ranked
from lowrank.core.truncation.directions import Directions, residual_curve
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Group, Weight

NAME = "chosen_inputs"


@dataclass(frozen=True, eq=False)
class ColumnFactors(Factors):
    """`left` are columns of the matrix itself, `right` says how all of its columns combine from those."""


@dataclass(frozen=True)
class ChosenInputs(Ranked):
    """An interpolative decomposition, `W ~ W[:, chosen] right`; rank (rows + cols) numbers, for any single matrix."""

    name: str = NAME
    fits: ClassVar[str] = "one matrix"
    factors: ClassVar[FactorKind] = ColumnFactors
    by_rank: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    nodes: ClassVar[int] = 2

    def measure_weight(self, weight: Weight, matrix: Matrix, folds: Folds | None) -> Vector | None:
        """What the columns that are not chosen lose, which is more than the weight's own truncation does."""
        if weight.stack > 1:
            return None
        basis, triangle, _ = _chosen(matrix)
        energies = np.square(triangle).sum(1)
        if folds is None:
            return tail_shares(energies)
        return residual_curve(Directions(basis, energies), matrix, folds.judge)

    def errors(self, group: Group, analysis: Analysis) -> Vector | None:
        """Those that were measured."""
        return analysis[group.weights[0]].curves.get(self.name) if len(group.weights) == 1 else None

    def cost(self, group: Group, analysis: Analysis, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Both factors."""
        return ranks * sum(analysis[group.name].weight.shape)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The first columns that QR with column pivoting takes, and the others in terms of them."""
        (name,) = group.weights
        matrix = numbers.read(name)
        _, triangle, order = _chosen(matrix)
        right = np.empty((rank, matrix.shape[1]))
        right[:, order] = np.linalg.lstsq(triangle[:rank, :rank], triangle[:rank], rcond=None)[0]
        return {name: Replacement(self.name, ColumnFactors(matrix[:, order[:rank]], right))}

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Two products."""
        (weight,) = weights
        return table.product(weight.cols, rank) + table.product(rank, weight.rows)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """The rank, and how many inputs there were to choose from."""
        return option.rank, f"{option.rank} of {analysis[name].weight.cols} inputs chosen{typed(option)}"


def _chosen(matrix: Matrix) -> tuple[Matrix, Matrix, np.ndarray]:
    return scipy.linalg.qr(matrix, mode="economic", pivoting=True)
