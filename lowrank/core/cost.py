"""What a matrix and its factors cost: in numbers stored, in bytes, and in multiply-adds for one token."""

from __future__ import annotations

import re
from typing import Literal, get_args

Unit = Literal["params", "bytes", "macs"]
"""What a budget counts: numbers stored, the bytes of those and of indices, or multiply-adds for one token."""
UNITS: tuple[Unit, ...] = get_args(Unit)
INDEX = 8
"""Bytes of an index."""


def two_factor_cost(rows: int, cols: int, rank: int, stack: int = 1) -> int:
    """Numbers in `left @ right`: rank (rows + cols), for each matrix of a stack."""
    return stack * rank * (rows + cols)


def break_even_rank(rows: int, cols: int) -> int:
    """The largest rank at which two factors hold fewer numbers than the matrix.

    Two factors cost `rank (rows + cols)`, so they pay below `rows cols / (rows + cols)`: half the width of a
    square matrix, not its full rank.

    Example:
        >>> break_even_rank(384, 1536)
        307
    """
    return (rows * cols - 1) // (rows + cols)


def item_bytes(dtype: str) -> float:
    """Bytes of one number of a dtype, by the digits in its name; 4 if there are none."""
    bits = re.search(r"\d+", dtype)
    return int(bits.group()) / 8 if bits else 4.0
