"""Factors: two thin matrices in place of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.drivers import Matrix
from lowrank.core.weight import Weight


@dataclass(frozen=True, eq=False)
class Factors:
    """`left @ right`, rows x rank times rank x cols: the input meets `right` first. A stack has one more axis."""

    left: NDArray[np.floating]
    right: NDArray[np.floating]

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.left.shape[-1])

    def product(self) -> NDArray[np.floating]:
        """The dense matrix that the factors stand for."""
        return self.left @ self.right

    def pair(self) -> tuple[Matrix, Matrix] | None:
        """Two matrices whose product is the weight's, in float64; None if there are none."""
        return np.asarray(self.left, np.float64), np.asarray(self.right, np.float64)

    def dense(self, weight: Weight) -> NDArray[np.floating]:
        """The matrix that they stand for, in the shape of the weight."""
        return self.product()

    def balanced(self, scale: float = 1.0) -> Factors:
        """The product times a power of two, with numbers of one size in both factors if one of them has extreme ones.

        What follows from a projection may be too large or too small for the 16 bits that it is stored in, though the
        matrix is not: the sum of many numbers in one direction, or a metric far from that of the weight. Sizes move by
        a power of two, which rounds nothing.

        Args:
            scale: the power of two.

        Example:
            >>> made = Factors(np.array([[0.5]]), np.array([[2.0**20]])).balanced()
            >>> float(made.left[0, 0]), float(made.right[0, 0])
            (1024.0, 512.0)
        """
        left, right = (float(np.abs(each).max(initial=0.0)) for each in (self.left, self.right))
        if min(left, right) == 0:
            return self
        # All by exponents: the numbers themselves could overflow.
        more = math.frexp(scale)[1] - 1
        low, high = math.frexp(left)[1], math.frexp(right)[1] + more
        share = 0 if _usual(low) and _usual(high) else (high - low) // 2
        return self if share == more == 0 else Factors(np.ldexp(self.left, share), np.ldexp(self.right, more - share))


USUAL = 10
"""Powers of two around one: the largest number of a factor, if it is between them, fits any type. Float16 ends at 2^16,
and loses digits below 2^-14."""


def _usual(exponent: int) -> bool:
    return -USUAL < exponent <= USUAL


def even_share(size: float) -> float:
    """A power of two near the root of a size, to share it out evenly; 1 for a size that any type stores well.

    Example:
        >>> even_share(2.0**20), even_share(3.0), even_share(0.0)
        (1024.0, 1.0, 1.0)
    """
    exponent = math.frexp(size)[1]
    return 1.0 if size == 0 or _usual(exponent) else math.ldexp(1.0, exponent // 2)
