"""Formats: the ways to store a matrix in few bits that graphs have operators for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.match import stem
from lowrank.core.rounding.codes import LEVELS, Codes, quantize, unit_of_each


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a matrix is rounded: see `rounding.codes`."""

    bits: int
    block: int | None = None
    stepped: bool = False

    def codes(self, matrix: Matrix, moment: Matrix | None = None) -> Codes:
        """The matrix in this format, rounded to what data with this moment ask for."""
        return quantize(matrix, bits=self.bits, block=self.block, stepped=self.stepped, moment=moment)

    @property
    def levels(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return LEVELS[self.bits]

    @property
    def is_odd(self) -> bool:
        """Whether all codes are odd numbers."""
        return self.bits < 4

    def units(self, matrix: Matrix) -> Matrix:
        """What one more in the code of each number of a matrix would add to it; zero where all of a block are zero."""
        return unit_of_each(matrix, self.bits, self.block, self.stepped)

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of codes and scales of a matrix.

        Example:
            >>> FORMATS["int4"].nbytes(384, 384) * 8 / 384**2
            4.333333333333333
        """
        blocks = 1 if self.block is None else -(-cols // self.block)
        if self.is_odd:
            # Each bit above two is stored by itself.
            return rows * (-(-cols // 4) + (self.bits - 2) * -(-cols // 8) + -(-blocks // 2) + SCALE)
        if self.stepped:
            return rows * (-(-(cols + blocks) // 2) + SCALE)
        width = cols if self.block is None else blocks * self.block
        return rows * (width * self.bits // 8 + blocks * SCALE)


SCALE = 4
"""Bytes of a scale."""
LEAST = 1024
"""Weights with fewer numbers stay as they are: what they save is less than what their operators cost."""

TRACED = "module."
"""In front of the names of what a tracer has computed from parameters."""

FORMATS: dict[str, Format] = {
    "int8": Format(bits=8),
    "int4": Format(bits=4, block=16, stepped=True),
    "int3": Format(bits=3, block=16, stepped=True),
    "int2": Format(bits=2, block=16, stepped=True),
    "nbits4": Format(bits=4, block=32),
}
"""A scale a row; a scale a row and a step of four bits for 16 numbers; a scale for 32 numbers, no more than the rank of
a usual factor."""


@cache
def even_error(name: str) -> float:
    """Squared relative error of rounding a matrix whose numbers all have one size, as even latents make them."""
    matrix = np.random.default_rng(0).standard_normal((64, 384))
    return float(np.square(matrix - FORMATS[name].codes(matrix).matrix()).sum() / np.square(matrix).sum())


@dataclass(frozen=True, slots=True)
class Stored:
    """How one weight of a model is stored."""

    dtype: str
    residual: int = 0
    """The rank of two factors of eight bits beside it, which hold what is largest of it."""


def format_of(name: str, dtype: str, known: Mapping[str, Stored]) -> Format | None:
    """The format of a constant in a file of a type, of which `mixed` is as `stored_as` says; None if it is stored in
    floating numbers, or with factors beside it."""
    stored = stored_as(name, known) if dtype == "mixed" else Stored(dtype)
    return None if stored.residual else FORMATS.get(stored.dtype)


def stored_as(name: str, known: Mapping[str, Stored]) -> Stored:
    """How a constant is stored that a weight has become, or a factor of it: as the weight, whose name it begins with.

    Query, key and value that are one product in a graph are stored as all three are, if that is in one way. What
    belongs to no weight is stored in eight bits.

    Example:
        >>> stored_as("query.left.weight", {"query.weight": Stored("int4")}).dtype
        'int4'
    """
    if name in known:
        return known[name]
    stems = [(stem(each), each) for each in known if name.startswith(f"{stem(each)}.")]
    if stems:
        return known[max(stems, key=lambda pair: len(pair[0]))[1]]
    parts = {known[each] for each in known if each.startswith(f"{stem(name.removeprefix(TRACED))}.")}
    return next(iter(parts)) if len(parts) == 1 else Stored("int8")
