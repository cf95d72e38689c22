"""What a matrix and its factors cost, in numbers stored (and multiply-adds for one token)."""

from __future__ import annotations


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
