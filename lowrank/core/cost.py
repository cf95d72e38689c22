"""What a matrix and its factors cost: in numbers stored, in bytes, and in multiply-adds for one token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lowrank.core.weight import Weight

Unit = Literal["params", "bytes", "macs"]
"""What a share of is kept: numbers, the bytes that they and their indices take, multiply-adds for one token."""
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


def spent(
    unit: Unit, structure: str, ranks: NDArray[np.int64], numbers: NDArray[np.int64], weights: Sequence[Weight]
) -> NDArray[np.int64]:
    """What a structure of some weights costs at some ranks, in a unit.

    Multiply-adds are those of one token (one position of a convolution) in the layers that multiply; a dense lookup
    costs none, a factored one its product. All experts of a mixture are counted.

    Args:
        unit: which.
        structure: its name.
        ranks: one or more.
        numbers: that it stores at each rank.
        weights: that it holds.

    Example:
        >>> from lowrank.core.weight import Layer
        >>> weight = Weight("w", 4, 6, "float32", "projection", (Layer("l", "linear"),))
        >>> one, numbers = np.array([2]), np.array([16])
        >>> [int(spent(unit, "pivoted", one, numbers, [weight])[0]) for unit in UNITS]
        [16, 96, 16]
    """
    if unit == "bytes":
        params = sum(w.params for w in weights)
        size = sum(w.params * item_bytes(w.dtype) for w in weights) / params
        gathered = INDEX * sum(w.rows for w in weights) if structure == "pivoted" else 0
        return np.ceil(numbers * size).astype(np.int64) + gathered
    if unit == "macs":
        lookups = sum(layer.kind == "lookup" for layer in weights[0].layers)
        products = max(len(weights[0].layers), 1) - lookups
        factored = 0 if structure == "dense" else ranks * lookups * weights[0].rows
        return numbers * products + factored
    return numbers


def item_bytes(dtype: str) -> float:
    """Of one number, after the digits in the name of its dtype; 4 if there are none."""
    bits = re.search(r"\d+", dtype)
    return int(bits.group()) / 8 if bits else 4.0
