"""What a matrix and its factors cost, in numbers stored (and multiply-adds for one token)."""

from __future__ import annotations


def dense_cost(rows: int, cols: int) -> int:
    """Numbers in the dense matrix."""
    return rows * cols


def two_factor_cost(rows: int, cols: int, rank: int) -> int:
    """Numbers in `left @ right`: rank (rows + cols)."""
    return rank * (rows + cols)


def break_even_rank(rows: int, cols: int) -> int:
    """The largest rank at which two factors hold fewer numbers than the matrix.

    Two factors cost `rank (rows + cols)`, so they pay below `rows cols / (rows + cols)`: half the width of a
    square matrix, not its full rank.

    Example:
        >>> break_even_rank(384, 1536)
        307
    """
    return (rows * cols - 1) // (rows + cols)
