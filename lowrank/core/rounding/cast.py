"""The error of storing factors in fewer bits, apart from that of truncation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import Pivoted

Array = NDArray[Any]

ROWS = 256
"""Rows that are compared at once."""


def cast_energy(exact: Factors | Pivoted, stored: Factors | Pivoted) -> float:
    """The squared Frobenius norm of the difference of two products, without forming either.

    With `L + E` and `R + F` in the place of `L` and `R` it is `|E R + (L + E) F|^2`, whose parts are as small as
    the errors are, so nothing cancels. Some rows at a time, as the whole would be as large as the dense matrix.

    Args:
        exact: as computed.
        stored: the same as they are read back.

    Example:
        >>> one = Factors(np.array([[1.0]]), np.array([[2.0]]))
        >>> cast_energy(one, Factors(np.array([[1.5]]), np.array([[2.0]])))
        1.0
    """
    left, right = stored.left - exact.left, stored.right - exact.right
    energy = 0.0
    for start in range(0, len(left), ROWS):
        part = slice(start, start + ROWS)
        off = left[part] @ exact.right + stored.left[part] @ right
        energy += float(np.square(off).sum(dtype=np.float64))
    if isinstance(exact, Pivoted):
        # The pivots stand in the matrix as they are.
        energy += float(np.square(right if exact.side == "output" else left).sum(dtype=np.float64))
    return energy


def evened(factors: Factors) -> Factors:
    """The same product with the columns of `left` and the rows of `right` of one size each, up to a factor of two.

    Scales are powers of two, so nothing is rounded. Types of 8 bits have so few exponents that small numbers on one
    side would be lost.

    Example:
        >>> evened(Factors(np.array([[1.0]]), np.array([[64.0]])))
        Factors(left=array([[8.]]), right=array([[8.]]))
    """
    sizes = [np.sqrt(np.square(m).mean(axis)) for m, axis in ((factors.left, 0), (factors.right, 1))]
    ratio = np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=(sizes[0] > 0) & (sizes[1] > 0))
    scale = np.exp2(np.rint(np.log2(ratio) / 2)).astype(factors.left.dtype)
    return Factors(factors.left * scale, factors.right / scale[:, None])
