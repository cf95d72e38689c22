"""Structure, the curve it offers for a group, and the Option that is one point of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.weight import Group, Weight


@dataclass(frozen=True, eq=False)
class Replacement:
    """What a backend puts in a weight's place.

    Factors and pivoted factors are a chain of small operators, a narrow matrix resizes the layer; the structure says
    which factors they are.
    """

    structure: str
    factors: Factors | Pivoted | Narrow
    bias: Vector | None = None
    """In place of the layer's bias, before zeros are put in; None leaves it, an empty one removes it."""
    rows: NDArray[np.int64] | None = None
    """Where neighbours have agreed on an order of channels: output i is what was output `rows[i]`."""
    cols: NDArray[np.int64] | None = None
    """The same of the inputs."""

    def dense(self, weight: Weight) -> Matrix:
        """The matrix that it stands for, in the weight's own shape."""
        if isinstance(self.factors, Narrow):
            return np.asarray(self.factors.dense(*weight.shape), np.float64)
        return np.asarray(self.factors.product(), np.float64)

    def dense_bias(self, weight: Weight) -> Vector | None:
        """The bias that goes with it, in the layer's own width; None if it is as it was."""
        if self.bias is None:
            return None
        if not self.bias.size:
            return np.zeros(weight.rows)
        if isinstance(self.factors, Narrow) and self.factors.outputs is not None:
            return np.append(self.bias, 0.0)[self.factors.outputs]
        return self.bias


@dataclass(frozen=True, slots=True)
class Option:
    """A structure at a rank for a group, with what it costs and what it is predicted to lose."""

    group: str
    structure: str
    rank: int
    cost: int
    """Numbers stored."""
    error: float
    """Squared relative error of the group's own output, as the analysis estimates it."""
    dtype: str = "float32"
    """What it is stored in, where that was chosen."""


@dataclass(frozen=True, eq=False)
class Curve:
    """All that a structure offers for one group: cost and error over rank, ranks ascending."""

    structure: str
    ranks: NDArray[np.int64]
    costs: NDArray[np.int64]
    errors: Vector
    dtype: str = "float32"

    @classmethod
    def empty(cls, structure: str) -> Curve:
        """Nothing on offer."""
        none = np.zeros(0, np.int64)
        return cls(structure, none, none, np.zeros(0))

    def option(self, group: str, at: int) -> Option:
        """The point at an index of the curve."""
        rank, cost, error = int(self.ranks[at]), int(self.costs[at]), float(self.errors[at])
        return Option(group, self.structure, rank, cost, error, self.dtype)


class Structure(Protocol):
    """One way to hold a group in fewer numbers."""

    @property
    def name(self) -> str:
        """As it stands in a plan."""
        ...

    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Cost and error at every rank worth having; empty if the structure does not fit the group."""
        ...

    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """The option at one rank, also one that the curve leaves out (a plan edited by hand).

        Raises:
            ValueError: if there is no such rank; the message says which there are.
        """
        ...

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """What replaces each weight of the group, by weight name; a weight not named stays as it is."""
        ...
