"""Pivoted factors: rank r in r (m + n) - r^2 numbers, the very same matrix."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.linalg.lapack import geqp3
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Weight

# scipy carries no types.
_lapack: Any = scipy.linalg


Side = Literal["output", "input"]
Ranks = TypeVar("Ranks", int, NDArray[np.int64])

LARGEST = 100.0
"""The largest number that a channel may be multiplied by in a combination: float32 leaves five digits then."""

DEPENDENT = 1e-12
"""Remainders of rows below this share of the largest one are rounding."""
LARGEST_COARSE = 4.0
"""The largest one for numbers stored in 16 bits or fewer, which have two or three digits to begin with."""


@dataclass(frozen=True, eq=False)
class Pivoted:
    """Of the outputs r are computed, `z = right x`, and the others follow from them, `left z`; or, on the side of the
    inputs, `y = left (x_p + right x_rest)`: the inputs that are no pivots are added to those that are.

    `right` is rank x cols and `left` (rows - rank) x rank; on the input side `right` is rank x (cols - rank) and `left`
    rows x rank. Where the pivots are: `order[i]` says which of `[z; left z]` output i is; without an order they are the
    first channels of each of the `heads`, or the last ones.
    """

    left: NDArray[np.floating]
    right: NDArray[np.floating]
    order: NDArray[np.int64] | None = None
    side: Side = "output"
    heads: int = 1
    last: bool = False

    @property
    def rank(self) -> int:
        """The number of pivots."""
        return int(self.right.shape[0])

    def product(self) -> NDArray[np.floating]:
        """The dense matrix that it stands for."""
        pivots, others = (
            (self.right, self.left @ self.right) if self.side == "output" else (self.left, self.left @ self.right)
        )
        axis = 0 if self.side == "output" else 1
        joint = np.concatenate([pivots, others], axis)
        order = self.order if self.order is not None else self._order(joint.shape[axis])
        return joint.take(order, axis)

    def dense(self, weight: Weight) -> NDArray[np.floating]:
        """The matrix that it stands for, in the shape of the weight."""
        return self.product()

    def pair(self) -> tuple[Matrix, Matrix]:
        """Two matrices with the same product, in float64."""
        left, right = np.asarray(self.left, np.float64), np.asarray(self.right, np.float64)
        count, identity = sum((self.right if self.side == "input" else self.left.T).shape), np.eye(self.rank)
        order = self.order if self.order is not None else self._order(count)
        if self.side == "output":
            return np.concatenate([identity, left])[order], right
        return left, np.concatenate([identity, right], 1)[:, order]

    def _order(self, count: int) -> NDArray[np.int64]:
        """Which of the pivots and, after them, the others each channel is."""
        width, each = count // self.heads, self.rank // self.heads
        pivots = np.arange(self.rank).reshape(self.heads, each)
        others = np.arange(self.rank, count).reshape(self.heads, width - each)
        return np.concatenate([others, pivots] if self.last else [pivots, others], 1).ravel()


def pivoted_cost(rows: int, cols: int, rank: Ranks) -> Ranks:
    """Numbers in pivoted factors: `rank (rows + cols) - rank^2`, below the dense cost at every rank below full.

    The gauge freedom of `left @ right` is rank^2 numbers (PIFA, Pivoting Factorization, ICML 2025).

    Example:
        >>> pivoted_cost(384, 384, 383), pivoted_cost(384, 384, 384) == 384 * 384
        (147455, True)
    """
    return rank * (rows + cols) - rank * rank


def without_pivots(matrix: Matrix, rank: int) -> Factors | Matrix:
    """A matrix of some rank as two factors, or itself where they would not be smaller.

    Pivoted factors need fewer numbers, and each of them exactly: what follows from pivots is a sum of many of them.

    Example:
        >>> matrix = np.outer(np.arange(6.0), np.ones(4))
        >>> without_pivots(matrix, 1).rank, without_pivots(matrix, 3) is matrix
        (1, True)
    """
    rows, cols = matrix.shape
    return directions(matrix).truncate(matrix, rank) if rank * (rows + cols) < rows * cols else matrix


def chosen_rows(
    basis: Matrix, heads: int = 1, forced: NDArray[np.bool_] | None = None, allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Rows of a rows x r matrix that are well conditioned together, equally many of each head; r of them.

    Gram-Schmidt with the largest remainder first, as QR with column pivoting does, with what must and what may be taken
    given.

    Args:
        basis: rows x r, r a multiple of `heads`.
        heads: how many blocks of neighbouring rows there are.
        forced: rows that are taken first; at most r / heads of each head.
        allowed: rows that can be taken; at least r / heads of each head.
    """
    rows, rank = basis.shape
    free = np.ones(rows, bool) if allowed is None else allowed.copy()
    if heads == 1 and forced is None:
        where = np.flatnonzero(free)
        return where[geqp3(basis[where])[1][:rank]]
    head: NDArray[np.int64] = np.arange(rows, dtype=np.int64) * heads // rows
    left = np.full(heads, rank // heads)
    waiting = np.zeros(rows, bool) if forced is None else forced & free
    # What the directions so far leave of each row is only known by its energy: one product with the basis a step.
    energies = np.einsum("ij,ij->i", basis, basis)
    directions, along = np.zeros((rank, rank)), np.zeros((rank, rows))
    chosen: list[int] = []
    for step in range(rank):
        candidates = waiting if waiting.any() else free & (left[head] > 0)
        at = int(np.argmax(np.where(candidates, energies, -1.0)))
        chosen.append(at)
        free[at] = waiting[at] = False
        left[head[at]] -= 1
        rest = basis[at] - along[:step, at] @ directions[:step]
        rest = rest - (directions[:step] @ rest) @ directions[:step]
        length = float(np.linalg.norm(rest))
        if length > 0:
            directions[step] = rest / length
            along[step] = basis @ directions[step]
            energies = np.maximum(energies - np.square(along[step]), 0.0)
    return np.array(chosen, np.int64)


def combinations(basis: Matrix, pivots: NDArray[np.int64], others: NDArray[np.int64], largest: float) -> Matrix | None:
    """`C` with `basis[rest] = C basis[kept]`; None if the rows that are kept do not carry the others soundly: if a
    number of it is above `largest`."""
    try:
        with warnings.catch_warnings():
            # An ill-conditioned block shows in the numbers that it gives.
            warnings.simplefilter("ignore")
            combined = _lapack.solve(basis[pivots].T, basis[others].T, check_finite=False).T
    except np.linalg.LinAlgError:
        return None
    sound = np.isfinite(combined).all() and np.abs(combined).max(initial=0.0) <= largest
    return combined if sound else None


def pivot(factors: Factors) -> Pivoted:
    """The same matrix with r of its rows kept, and the others as combinations of those.

    The rows are chosen by QR with column pivoting on `left'` (Businger and Golub 1965), which keeps the combinations
    small: rows that are nearly dependent are not chosen together.

    Args:
        factors: `left @ right` of rank r, r at most the number of rows; not a stack.

    Example:
        >>> f = Factors(np.array([[1.0], [2.0], [4.0]]), np.array([[1.0, 3.0]]))
        >>> pivot(f).product().tolist() == f.product().tolist()
        True
    """
    # In the precision of the factors, which is float32 for weights that are stored in 16 bits.
    left, dtype = factors.left, factors.left.dtype
    rank = factors.rank
    triangle, order = geqp3(left)
    # left'[:, order] = Q [R1 R2]: the rows that are left out are R2' inv(R1') times those that are kept.
    diagonal = np.abs(np.diag(triangle))
    least = DEPENDENT if dtype == np.float64 else float(np.finfo(dtype).eps) * rank
    sound = int(np.count_nonzero(diagonal > least * diagonal.max(initial=0.0)))
    others = np.zeros((left.shape[0] - rank, rank), dtype)
    if sound:
        others[:, :sound] = _lapack.solve_triangular(
            triangle[:sound, :sound], triangle[:sound, rank:], check_finite=False
        ).T
    pivots = left[order[:rank]] @ factors.right
    return Pivoted(others, pivots, np.argsort(order))
