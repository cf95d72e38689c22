"""Magnitude pruning: the smallest weights become zeros, and the matrices stay as large as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lowrank.backends.base import Backend
from lowrank.core.linalg.eigen import Matrix


def pruned(backend: Backend, names: Sequence[str], keep: float) -> tuple[Backend, int]:
    """A model in which the smallest numbers of some weights are zeros.

    Of each weight the same share is kept (LeCun et al., Optimal Brain Damage, 1989, compare with it; layer by layer
    as in Han et al., Learning both Weights and Connections, 2015). It is trained no further.

    Args:
        backend: the dense model, which stays as it is.
        names: of the weights.
        keep: the share of each one's numbers that stays.

    Returns:
        The model, and how many numbers were made zero or were zero and count as such.
    """
    matrices = {name: without_smallest(backend.read(name), keep) for name in names}
    return backend.changed({name: (matrix, None) for name, matrix in matrices.items()}), zeros_in(matrices)


def without_smallest(matrix: Matrix, keep: float) -> Matrix:
    """A matrix with its smallest numbers at zero, so many that at most a share stays; of equal ones the first go.

    Example:
        >>> without_smallest(np.array([[3.0, -1.0], [2.0, -4.0]]), 0.5)
        array([[ 3.,  0.],
               [ 0., -4.]])
    """
    flat = matrix.reshape(-1).copy()
    count = flat.size - int(keep * flat.size)
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0.0
    return flat.reshape(matrix.shape)


def zeros_in(matrices: Mapping[str, Matrix]) -> int:
    """How many numbers are zero."""
    return sum(int(matrix.size - np.count_nonzero(matrix)) for matrix in matrices.values())
