"""Gram: the streamed second moment of what a layer sees or gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.linalg.lapack import add_square
from lowrank.core.weight import Weight

Side = Literal["input", "output"]

SPATIAL_INPUTS = 2304
"""Patches wider than this (256 channels of 3 x 3) get no input moment, so no spatial factors in the metric of data."""

STILL = 1e-12
"""Variances below this share of the second moment are rounding: two numbers that nearly cancel."""


@dataclass(frozen=True, slots=True)
class Gram:
    """Sum of `x x'` over tokens, in float64; additive over batches, folds and data sets.

    `input`: `x` is what the layer multiplies (cols wide). `output`: `x` is `W` times that, without the bias
    (rows wide), which is all that truncation needs and smaller when the layer is wide. `energy` is the sum of
    the squared norms of the layer's *inputs* on either side, so that a ridge can be added without them.

    A stack of matrices (groups of channels, experts) has a stack of moments; tokens and energy are those of all of
    them together, so that a matrix that few tokens reach counts for little.
    """

    side: Side
    moment: Matrix
    tokens: int = 0
    energy: float = 0.0
    nonfinite: int = 0
    """Tokens with NaN or infinity, or numbers whose squares overflow: counted, and never added."""
    total: Vector | None = None
    """Sum of `x` over tokens; None where nobody asked for it."""

    @classmethod
    def zeros(cls, weight: Weight, side: Side | None = None) -> Gram:
        """An empty Gram for a weight, of the side that is cheaper unless one is named.

        A wide weight is decided by its outputs, unless a spatial view of it needs the inputs and they are not too many.
        """
        if side is None:
            spatial = weight.spatial is not None and weight.cols <= SPATIAL_INPUTS
            side = "output" if weight.rows < weight.cols and not spatial else "input"
        width = weight.rows if side == "output" else weight.cols
        if weight.stack > 1:
            return cls(side, np.zeros((weight.stack, width, width)))
        return cls(side, np.zeros((width, width)), total=np.zeros(width))

    @property
    def informs(self) -> bool:
        """Whether it says anything: some tokens were seen, and not all of them were zero."""
        return self.tokens > 0 and self.energy > 0

    @property
    def mean(self) -> Vector:
        """`E[x]`; zeros where the sum was not kept."""
        if self.total is None:
            return np.zeros(int(self.moment.shape[-1]))
        return np.asarray(self.total / max(self.tokens, 1), np.float64)

    @property
    def covariance(self) -> Matrix:
        """`E[(x - E[x])(x - E[x])']`; zero for what hardly moves: see `STILL`."""
        mean, moment = self.mean, self.moment / max(self.tokens, 1)
        centred: Matrix = moment - mean[:, None] * mean
        moving = centred.diagonal() > STILL * moment.diagonal()
        return centred if moving.all() else centred * moving * moving[:, None]

    def part(self, index: int) -> Gram:
        """The Gram of one matrix of a stack."""
        return Gram(self.side, self.moment[index], self.tokens, self.energy, self.nonfinite)

    @classmethod
    def of(cls, side: Side, vectors: NDArray[np.floating], energy: float | None = None) -> Gram:
        """The Gram of some tokens (rows of `vectors`: tokens x width); those not finite are only counted."""
        return Tokens.of(side, vectors, energy).gram()

    def added_to(self, total: Gram) -> Gram:
        """The sum, in the place of `total`: moments are the largest of what is in memory."""
        moment = total.moment
        moment += self.moment
        none = np.zeros(())
        return replace(replace(total, moment=none) + replace(self, moment=none), moment=moment)

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.side,
            self.moment + other.moment,
            self.tokens + other.tokens,
            self.energy + other.energy,
            self.nonfinite + other.nonfinite,
            None if self.total is None or other.total is None else self.total + other.total,
        )

    def mirrored(self) -> Gram:
        """This one, with a moment that is symmetric to the last bit: its lower triangle, which is what is stored."""
        above = ~np.tri(self.moment.shape[-1], dtype=bool)
        np.copyto(self.moment, self.moment.swapaxes(-1, -2), where=above)
        return self

    def metric(self, core: Matrix, basis: Matrix | None, scale: float = 1.0) -> Matrix:
        """The layer's mean output moment `E[(Wx)(Wx)']`, in the coordinates of the column basis of `W`.

        Args:
            core: min(rows, cols) x cols, with `W = scale basis core`.
            basis: rows x min(rows, cols) orthonormal, or None for the identity.
            scale: what the weight was divided by; the moment is in its units.

        Returns:
            A min(rows, cols) square matrix (research: DRONE 2021; AFM 2023; `W C W'`).
        """
        count = max(self.tokens, 1)
        if self.side == "input":
            return core @ (self.moment / count) @ core.T
        # Not by its square, which can be zero or infinite where this is not.
        mean = self.moment / count / scale / scale
        return mean if basis is None else basis.T @ mean @ basis


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What a layer sees or gives of some tokens: a Gram whose product is only made when it is added to another one."""

    side: Side
    rows: Matrix
    """Tokens x width, in float64; those not finite are only counted."""
    energy: float
    nonfinite: int = 0

    @classmethod
    def of(cls, side: Side, vectors: NDArray[np.floating], energy: float | None = None) -> Tokens:
        """Rows of `vectors`; `energy` is that of the layer's inputs, if they are not these."""
        rows = np.ascontiguousarray(vectors, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", rows, rows)
            own = float(squares.sum())
        count = len(rows)
        if not np.isfinite(own):
            finite = np.isfinite(squares)
            rows, own = rows[finite], float(squares[finite].sum())
        return cls(side, rows, own if energy is None else energy, count - len(rows))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.rows)

    def gram(self) -> Gram:
        """Their Gram."""
        width = int(self.rows.shape[1])
        return self.added_to(Gram(self.side, np.zeros((width, width)), total=np.zeros(width))).mirrored()

    def added_to(self, total: Gram) -> Gram:
        """The sum, in the place of `total`, of whose moment the lower triangle counts from then on (`mirrored`)."""
        add_square(total.moment, self.rows)
        return Gram(
            total.side,
            total.moment,
            total.tokens + self.tokens,
            total.energy + self.energy,
            total.nonfinite + self.nonfinite,
            None if total.total is None else total.total + self.rows.sum(0),
        )


def moment_of(side: Side, vectors: NDArray[np.floating], energy: float | None = None) -> Gram | Tokens:
    """What is the cheaper to add, once or for each of several layers that read the same: few tokens as they are, of
    many their Gram. Arguments as in `Tokens.of`."""
    found = Tokens.of(side, vectors, energy)
    return found if found.tokens <= found.rows.shape[1] else found.gram()
