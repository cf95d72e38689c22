"""Pivoted factors: rank r in r (m + n) - r^2 numbers, the very same matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from lowrank.core.factors import Factors

# scipy carries no types.
_lapack: Any = scipy.linalg


@dataclass(frozen=True, eq=False)
class Pivoted:
    """`y = [z; left z]` in the order of `order`, with `z = right x`: r outputs are computed, the others follow.

    `right` is rank x cols, `left` (rows - rank) x rank. `order[i]` says which of `[z; left z]` output i is; None leaves
    the outputs in the order in which they come.
    """

    left: NDArray[np.floating]
    right: NDArray[np.floating]
    order: NDArray[np.int64] | None

    @property
    def rank(self) -> int:
        """The number of outputs that are computed from the input."""
        return int(self.right.shape[0])

    def product(self) -> NDArray[np.floating]:
        """The dense matrix that it stands for."""
        rows = np.concatenate([self.right, self.left @ self.right])
        return rows if self.order is None else rows[self.order]


def pivoted_cost(rows: int, cols: int, rank: int) -> int:
    """Numbers in pivoted factors: `rank (rows + cols) - rank^2`, below the dense cost at every rank below full.

    The gauge freedom of `left @ right` is rank^2 numbers (PIFA, Pivoting Factorization, ICML 2025).

    Example:
        >>> pivoted_cost(384, 384, 383), pivoted_cost(384, 384, 384) == 384 * 384
        (147455, True)
    """
    return rank * (rows + cols) - rank * rank


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
    left = np.asarray(factors.left, np.float64)
    rank = factors.rank
    _, triangle, order = _lapack.qr(left.T, mode="economic", pivoting=True, check_finite=False)
    # left'[:, order] = Q [R1 R2]: the rows that are left out are R2' inv(R1') times those that are kept.
    diagonal = np.abs(np.diag(triangle))
    sound = int(np.count_nonzero(diagonal > 1e-12 * diagonal.max(initial=0.0)))
    rest = np.zeros((left.shape[0] - rank, rank))
    if sound:
        rest[:, :sound] = _lapack.solve_triangular(
            triangle[:sound, :sound], triangle[:sound, rank:], check_finite=False
        ).T
    kept = left[order[:rank]] @ np.asarray(factors.right, np.float64)
    return Pivoted(rest, kept, np.argsort(order).astype(np.int64))
