"""Gram: the streamed second moment of what a layer sees or gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg import Matrix

Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Gram:
    """Sum of `x x'` over tokens, in float64; additive over batches, folds and data sets.

    `input`: `x` is what the layer multiplies (cols wide). `output`: `x` is `W` times that, without the bias
    (rows wide), which is all that truncation needs and smaller when the layer is wide. `energy` is the sum of
    the squared norms of the layer's *inputs* on either side, so that a ridge can be added without them.
    """

    side: Side
    moment: Matrix
    tokens: int = 0
    energy: float = 0.0
    nonfinite: int = 0
    """Tokens with NaN or infinity: counted, and never added."""

    @classmethod
    def zeros(cls, side: Side, width: int) -> Gram:
        """An empty Gram for vectors of this width."""
        return cls(side, np.zeros((width, width)))

    @classmethod
    def of(cls, side: Side, vectors: NDArray[np.floating], energy: float | None = None) -> Gram:
        """The Gram of some tokens (rows of `vectors`: tokens x width); those not finite are only counted."""
        rows = np.asarray(vectors, dtype=np.float64)
        finite = np.isfinite(rows).all(axis=1)
        kept = rows if finite.all() else rows[finite]
        own = float(np.vdot(kept, kept)) if energy is None else energy
        return cls(side, kept.T @ kept, len(kept), own, len(rows) - len(kept))

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.side,
            self.moment + other.moment,
            self.tokens + other.tokens,
            self.energy + other.energy,
            self.nonfinite + other.nonfinite,
        )

    def metric(self, core: Matrix, basis: Matrix | None) -> Matrix:
        """The layer's mean output moment `E[(Wx)(Wx)']`, in the coordinates of the column basis of `W`.

        Args:
            core: min(rows, cols) x cols, with `W = basis core`.
            basis: rows x min(rows, cols) orthonormal, or None for the identity.

        Returns:
            A min(rows, cols) square matrix (research: DRONE 2021; AFM 2023; `W C W'`).
        """
        count = max(self.tokens, 1)
        if self.side == "input":
            return core @ (self.moment / count) @ core.T
        mean = self.moment / count
        return mean if basis is None else basis.T @ mean @ basis
