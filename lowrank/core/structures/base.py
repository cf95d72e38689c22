"""Structure, the curve it offers for a group, and the Option that is one point of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.cost import INDEX, Unit, item_bytes
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.rounding.cost import BITS, HALF, NODES
from lowrank.core.rounding.formats import FORMATS, SCALE, even_error
from lowrank.core.selection.timings import Timings
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.weight import Coupling, Group, Weight

FactorKind = type[Factors] | type[Pivoted] | type[Narrow]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What a backend puts in the place of a weight.

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
    """Where neighbours have agreed on an order: input j is what was input `cols[j]`."""

    def dense(self, weight: Weight) -> Matrix:
        """The matrix that it stands for, in the weight's own shape."""
        return np.asarray(self.factors.dense(weight), np.float64)

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
    """The type that it is stored in, where that was chosen."""

    @property
    def curve(self) -> Curve:
        """A curve of this one point."""
        ranks, costs, errors = np.array([self.rank]), np.array([self.cost]), np.array([self.error])
        return Curve(self.structure, ranks, costs, errors, self.dtype)


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
        """A curve without a point: the structure does not fit."""
        none = np.zeros(0, np.int64)
        return cls(structure, none, none, np.zeros(0))

    def option(self, group: str, at: int) -> Option:
        """The point at an index of the curve."""
        rank, cost, error = int(self.ranks[at]), int(self.costs[at]), float(self.errors[at])
        return Option(group, self.structure, rank, cost, error, self.dtype)


@dataclass(frozen=True)
class Structure(ABC):
    """One way to hold a group in fewer numbers, and all that is said of it.

    What one has in common with others is a trait: a class variable that the rest of the package asks for.
    """

    name: str
    """As it stands in a plan."""

    is_dense: ClassVar[bool] = False
    """The weights stay as they are."""
    is_residual: ClassVar[bool] = False
    """Factors beside a whole matrix that is rounded: the model keeps its weights, the rounded graph has both."""
    factors: ClassVar[FactorKind] = Factors
    """What it puts in a weight's place."""
    by_rank: ClassVar[bool] = False
    """The factors of one linear map, whose rank is that of its matrix; they can be read back from a graph alone."""
    is_nested: ClassVar[bool] = False
    """The factors of a lower rank are leading parts of those of a higher one."""
    keeps_channels: ClassVar[bool] = False
    """After it a linear layer reads and gives what it did before."""
    fixed_order: ClassVar[bool] = False
    """Channels have other coordinates, or are fewer: they stay in the order in which they were chosen, and only their
    coupling decides on them."""
    leading_channels: ClassVar[bool] = False
    """At a lower rank each head has the first of the channels that it has at a higher one."""
    drops_bias: ClassVar[bool] = False
    """The bias of a layer can be gone, as another layer has taken it over."""
    per_head: ClassVar[bool] = False
    """Its rank counts channels of a head, which are few: ranks need not be multiples of a machine's step."""
    shares_basis: ClassVar[bool] = False
    """All weights of a group have the same right factor."""
    can_round: ClassVar[bool] = True
    """It can be stored in integers."""
    even_latents: ClassVar[bool] = False
    """The channels between its two matrices can be brought to one size before the matrices are rounded."""
    nodes: ClassVar[int] = 1
    """How many products with a constant it has for each weight."""

    @property
    def replaces(self) -> bool:
        """Whether it puts other layers into the model."""
        return not (self.is_dense or self.is_residual)

    @abstractmethod
    def curve(self, group: Group, analysis: Analysis, multiple: int) -> Curve:
        """Cost and error at every rank worth having; empty if the structure does not fit the group."""

    @abstractmethod
    def at(self, group: Group, analysis: Analysis, rank: int) -> Option:
        """The option at one rank, also one that the curve leaves out (a plan edited by hand).

        Raises:
            ValueError: if there is no such rank; the message says which there are.
        """

    @abstractmethod
    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """What replaces each weight of the group, by weight name; a weight not named stays as it is."""

    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """What it can make of a coupling, on the fold that judges; None without the moments, or for another kind of
        coupling."""
        return None

    def measure_weight(self, weight: Weight, matrix: Matrix, folds: Folds | None) -> Vector | None:
        """Squared relative output errors at rank 0 ... k of one weight, for a structure whose errors are not those of
        the weight's truncation; `WeightAnalysis.curves` then has them under its name.

        Args:
            weight: its record.
            matrix: rows x cols, or a stack of them, float64.
            folds: Grams of its layer's data, which say something; None without any.

        Returns:
            None where it does not fit, and for a structure that goes by the analysis' own error curve.
        """
        return None

    def indices(self, weights: Sequence[Weight]) -> int:
        """How many indices it stores."""
        return 0

    def spent(self, unit: Unit, curve: Curve, weights: Sequence[Weight]) -> NDArray[np.int64]:
        """What some weights cost at each point of a curve, in a unit.

        Multiply-adds are those of one token (one position of a convolution) in the layers that multiply, as often as
        a layer is applied; a dense lookup costs none, a factored one its product. All experts of a mixture are counted.

        Args:
            unit: which.
            curve: of the structure.
            weights: that it holds.
        """
        if unit == "bytes":
            params = sum(w.params for w in weights)
            size = sum(w.params * item_bytes(w.dtype) for w in weights) / params
            return np.ceil(curve.costs * size).astype(np.int64) + INDEX * self.indices(weights)
        if unit == "macs":
            factored = 0 if self.is_dense else curve.ranks * weights[0].lookups * weights[0].rows
            return curve.costs * weights[0].products + factored
        return curve.costs

    def file_bytes(self, curve: Curve, weights: Sequence[Weight]) -> Vector:
        """Bytes that it takes in a file at each point of a curve: numbers in the curve's type, scales, indices, and
        about what its nodes are.

        Args:
            curve: of the structure.
            weights: that it holds.
        """
        dtype, numbers = curve.dtype, curve.costs.astype(np.float64)
        size: Vector = numbers * (BITS[dtype] / 8) + self.nodes * len(weights) * NODES[dtype]
        if dtype in FORMATS:
            size = size + SCALE * (scaled_rows(weights) + (curve.ranks if self.even_latents else 0))
        return size + INDEX * self.indices(weights)

    def times(self, table: Timings, ranks: NDArray[np.int64], group: Group, weights: Sequence[Weight]) -> Vector:
        """Microseconds at some ranks; infinite where nothing is known of it.

        Args:
            table: what operators take.
            ranks: one or more.
            group: that it holds.
            weights: of the group, in order.

        Raises:
            TimingError: if the table is for other shapes.
        """
        if not all(w.stack == 1 and all(layer.kind in ("linear", "lookup") for layer in w.layers) for w in weights):
            return np.full(len(ranks), 0.0 if self.is_dense else np.inf)
        return np.array([self.time(table, int(rank), group, weights) for rank in ranks])

    def time(self, table: Timings, rank: int, group: Group, weights: Sequence[Weight]) -> float:
        """Microseconds at a rank, for linear layers and lookups; infinite if it is not known what it takes."""
        return np.inf

    def rounded_error(self, dtype: str, dense: Sequence[float], tail: Vector) -> Vector:
        """The squared relative error that a type adds to its own, at each rank.

        Args:
            dtype: of what it stores.
            dense: errors of rounding its weights as they are.
            tail: the share of the first weight's plain energy beyond each rank.
        """
        if dtype not in FORMATS:
            return np.full_like(tail, HALF if dtype == "float16" else 0.0)
        # The errors of weights in a row add up; the second factor of a pair sees even latents.
        return np.full_like(tail, sum(dense) + (len(dense) * even_error(dtype) if self.even_latents else 0.0))

    def stored_in(self, curve: Curve, group: Group, analysis: Analysis, dtype: str) -> Curve:
        """What it offers when it is stored in a type; nothing where that cannot be.

        Args:
            curve: in floating numbers of 32 bits.
            group: whose it is.
            analysis: of the model.
            dtype: the type.
        """
        records = [analysis[name] for name in group.weights]
        if dtype in FORMATS and not (self.can_round and all(dtype in record.rounding for record in records)):
            return Curve.empty(self.name)
        dense = [record.rounding.get(dtype, 0.0) for record in records]
        tail = records[0].plain.tail_energy
        added = self.rounded_error(dtype, dense, tail[np.minimum(curve.ranks, len(tail) - 1)])
        return replace(curve, errors=curve.errors + added, dtype=dtype)

    def described(self, option: Option, name: str, analysis: Analysis) -> tuple[int | None, str]:
        """The rank of a weight of an option's group in its spectrum, if it has one there, and the option in words."""
        return option.rank, f"rank {option.rank} of {analysis[name].weight.full_rank}{typed(option)}"


def typed(option: Option) -> str:
    """The type of an option in words, where it is not the usual one."""
    return "" if option.dtype == "float32" else f", in {option.dtype}"


def scaled_rows(weights: Sequence[Weight]) -> int:
    """How many rows of dense weights have a scale each; of a table those that are looked up."""
    return sum(w.cols if w.is_table else w.rows for w in weights)
