"""What is analysed (Weight), where it is applied (Layer), how it is stored (View), what is left out (Skip)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["projection", "head"]
"""`projection`: inside a repeated block (attention, feed-forward). `head`: outside, near the output."""


@dataclass(frozen=True, slots=True)
class View:
    """How a stored tensor becomes the matrix `W` of `y = W x` (rows = outputs, cols = inputs) and back.

    Example:
        >>> import numpy as np
        >>> View("cols rows").matrix(np.zeros((3, 5))).shape
        (5, 3)
    """

    stored: str = "rows cols"
    """The stored axes, as an einops pattern over `rows` and `cols`."""

    def matrix(self, stored: NDArray[np.generic]) -> NDArray[np.generic]:
        """The stored tensor as a rows x cols matrix (a view of the same memory where possible)."""
        from einops import rearrange

        return rearrange(stored, f"{self.stored} -> rows cols")

    def stored_from(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """A rows x cols matrix as it is stored; the inverse of `matrix`."""
        from einops import rearrange

        return rearrange(matrix, f"rows cols -> {self.stored}")

    def shape(self, stored: Sequence[int]) -> tuple[int, int]:
        """(rows, cols) of a stored tensor of this shape."""
        sizes = dict(zip(self.stored.split(), stored, strict=True))
        return int(sizes["rows"]), int(sizes["cols"])


@dataclass(frozen=True, slots=True)
class Layer:
    """One place that applies a Weight; the unit of rewriting."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored tensor seen as a matrix; the unit of analysis, selection and factorisation. Holds no data.

    A weight with more than one layer is tied: it is analysed once, costs once and is stored once.
    """

    name: str
    rows: int
    cols: int
    dtype: str
    role: Role
    layers: tuple[Layer, ...] = ()
    view: View = View()

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols): outputs, inputs."""
        return self.rows, self.cols

    @property
    def params(self) -> int:
        """How many numbers the dense matrix holds."""
        return self.rows * self.cols

    @property
    def full_rank(self) -> int:
        """The largest rank it can have."""
        return min(self.rows, self.cols)


@dataclass(frozen=True, slots=True)
class Skip:
    """A stored tensor that is left as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that are decided together. One option is chosen for each group."""

    name: str
    weights: tuple[str, ...]
