"""Narrow: a matrix with fewer rows or columns, and how it meets neighbours that may not know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowrank.core.truncation.attention import picks_of, spread_of
from lowrank.core.weight import Weight


@dataclass(frozen=True, eq=False)
class Narrow:
    """A smaller dense matrix, of some of the outputs from some of the inputs, in whatever coordinates those are.

    `outputs[i]` says which of its rows output i of the layer is, -1 if it is always zero; None keeps them all.
    `inputs` are the inputs that it reads; None reads them all. A `padded` layer keeps the widths it had, so that what
    is around it need not change: zeros are put in and picked out again. Otherwise the neighbours are narrower too.
    """

    matrix: NDArray[np.floating]
    outputs: NDArray[np.int64] | None = None
    inputs: NDArray[np.int64] | None = None
    padded: bool = False
    rank: int = 0
    """What its structure calls the rank: channels of a head, neurons."""

    def pair(self) -> None:
        """None: it is one matrix."""

    def within(self, weight: Weight, rows: int, cols: int) -> Narrow:
        """The same between neighbours that are narrower too, but less so: heads of which the first channels are left.

        Args:
            weight: what it stands for.
            rows: outputs of the layer there.
            cols: its inputs there.
        """
        outputs, inputs = self.outputs, self.inputs
        if outputs is not None and rows < weight.rows:
            heads = len(self.matrix) // self.rank
            outputs = spread_of(heads, self.rank, rows // heads)
        if inputs is not None and cols < weight.cols:
            heads = self.matrix.shape[1] // self.rank
            inputs = picks_of(heads, self.rank, cols // heads)
        return replace(self, outputs=outputs, inputs=inputs)

    def dense(self, weight: Weight) -> NDArray[np.floating]:
        """A matrix in the shape of the weight: zero where there is nothing."""
        wide = self.matrix
        if self.inputs is not None:
            wide = np.zeros((wide.shape[0], weight.cols), wide.dtype)
            wide[:, self.inputs] = self.matrix
        if self.outputs is None:
            return wide
        full = np.zeros(weight.shape, wide.dtype)
        full[self.outputs >= 0] = wide[self.outputs[self.outputs >= 0]]
        return full
