"""Refusing weights that hold NaN or infinity, whatever format they were read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowrank.core.linalg.eigen import Matrix
from lowrank.errors import NonFiniteWeight


def finite(name: str, matrix: Matrix, stored: Sequence[int]) -> Matrix:
    """The matrix itself.

    Args:
        name: the weight's.
        matrix: its numbers.
        stored: the shape that it is stored in, for the message.

    Raises:
        NonFiniteWeight: if it holds NaN or infinity; the message says how many of which.
    """
    if not np.isfinite(matrix).all():
        nan, infinite = int(np.isnan(matrix).sum()), int(np.isinf(matrix).sum())
        raise NonFiniteWeight(
            f"{name} ({' x '.join(map(str, stored))}) holds {nan} NaN and {infinite} infinite values, so it has no "
            "spectrum; repair the checkpoint, or leave this weight out with --exclude"
        )
    return matrix
