"""Symmetric eigenproblems and the bases they give: what the rest of the core decomposes with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]

from lowrank.core.linalg.drivers import Matrix, Vector, solved
from lowrank.errors import DecompositionError

# scipy carries no types.
_lapack: Any = scipy.linalg


def eigh_descending(symmetric: Matrix, *, name: str = "matrix") -> tuple[Vector, Matrix]:
    """Eigenvalues of a positive semi-definite matrix, largest first and none negative, with eigenvectors.

    If LAPACK's usual driver does not converge others are tried, see `drivers.solved`; if none does, the error names the
    matrix: never an unconverged result.

    Args:
        symmetric: n x n; only its lower triangle is read.
        name: what to call the matrix in an error.

    Returns:
        n eigenvalues, and the n x n matrix whose columns are the eigenvectors in the same order.

    Raises:
        DecompositionError: if no solver converges, or the matrix is not finite.

    Example:
        >>> eigh_descending(np.diag([1.0, 4.0]))[0].tolist()
        [4.0, 1.0]
    """
    values, vectors = solved(symmetric, vectors=True, name=name)
    assert vectors is not None
    # Stable, from the ascending order of the usual driver.
    order = np.argsort(values, kind="stable")[::-1]
    return np.maximum(values[order], 0.0), np.ascontiguousarray(vectors[:, order])


def eigvalsh_descending(symmetric: Matrix, *, name: str = "matrix") -> Vector:
    """The eigenvalues alone, largest first and none negative; see `eigh_descending`."""
    values, _ = solved(symmetric, vectors=False, name=name)
    return np.maximum(np.sort(values)[::-1], 0.0)


def solve_positive(symmetric: Matrix, right: Matrix, *, name: str = "matrix") -> Matrix:
    """`symmetric^-1 right` for a positive definite matrix that rounding may have made indefinite.

    By Cholesky; where that fails, by those eigenvectors alone whose eigenvalues stand out of rounding, which is as
    large as the most negative one: in all other directions the result is zero.

    Raises:
        DecompositionError: if no solver converges.

    Example:
        >>> solve_positive(np.diag([2.0, 4.0]), np.array([[2.0], [2.0]])).tolist()
        [[1.0], [0.5]]
    """
    try:
        factor = _lapack.cho_factor(symmetric, lower=True, check_finite=False)
        solution: Matrix = _lapack.cho_solve(factor, right, check_finite=False)
        if np.isfinite(solution).all():
            return solution
    except np.linalg.LinAlgError:
        pass
    values, vectors = solved(symmetric, vectors=True, name=name)
    assert vectors is not None
    rounding = len(values) * float(np.finfo(np.float64).eps) * float(np.abs(values).max(initial=0.0))
    sound = values > max(rounding, -2 * float(values.min(initial=0.0)))
    return vectors[:, sound] @ ((vectors[:, sound].T @ right) / values[sound, None])


def inverse_factor(symmetric: Matrix) -> Matrix:
    """The upper triangular `U` with `U' U` the inverse of a positive definite matrix, which is never formed.

    If the matrix turned over is `L L'`, then `U` is the inverse of `L` turned over.

    Raises:
        DecompositionError: if it is not positive definite.

    Example:
        >>> inverse_factor(np.diag([4.0, 16.0])).tolist()
        [[0.5, 0.0], [0.0, 0.25]]
    """
    size = len(symmetric)
    try:
        lower = np.linalg.cholesky(symmetric[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise DecompositionError(
            f"a {size} x {size} moment is not positive definite; look for extreme inputs"
        ) from None
    return _lapack.solve_triangular(lower, np.eye(size), lower=True, check_finite=False)[::-1, ::-1]


def column_basis(weight: Matrix) -> tuple[Matrix | None, Matrix]:
    """An orthonormal `Q` and a `core` with `W = Q core`, core having min(rows, cols) rows.

    For a wide or square matrix `Q` is the identity (returned as None) and the core is `W` itself. For a tall one
    it is the thin QR. Working on the core keeps every eigenproblem at min(rows, cols) without ever dividing by
    a singular value.
    """
    rows, cols = weight.shape
    if rows <= cols:
        return None, weight
    q, r = _lapack.qr(weight, mode="economic", check_finite=False)
    return q, r


def singular_values(weight: Matrix, *, name: str = "matrix") -> Vector:
    """All min(rows, cols) singular values, largest first, from the smaller Gram matrix in float64.

    Absolute accuracy is about 1e-8 of the largest one (the square root of machine precision), which is far
    below any rank decision, and two to eight times faster than an SVD. Those of a stack are the roots of the summed
    squares, rank by rank, so that their tail is the error of truncating every matrix at one rank.
    """
    scale = magnitude(weight)
    unit = weight / weight.dtype.type(scale)
    squares = [_squares(each, name) for each in (unit if weight.ndim == 3 else unit[None])]
    return scale * np.sqrt(np.sum(squares, axis=0))


def _squares(unit: Matrix, name: str) -> Vector:
    return moment_values(wide(unit), name=name)


def singular_vectors(weight: Matrix, *, name: str = "matrix") -> tuple[Vector, Matrix]:
    """`singular_values`, and the singular vectors of the smaller side as columns, in the same order."""
    scale = magnitude(weight)
    squares, vectors = moment_vectors(wide(weight / weight.dtype.type(scale)), name=name)
    return scale * np.sqrt(squares.astype(np.float64)), vectors


def wide(matrix: Matrix) -> Matrix:
    """A matrix, or the transpose of a tall one."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


SPREAD = 1e3
"""The largest energy over the mean one, beyond which 32 bits are too few for a moment: its rounding is relative to its
largest number."""


def moment_values(core: Matrix, *, name: str = "matrix") -> Vector:
    """The eigenvalues of `core core'`, largest first, in float64.

    Computed in float32 where the core is, which is for numbers that are stored in 16 bits or fewer: they were rounded
    a thousand times as coarsely. Not so where one direction stands far out.
    """
    values = eigvalsh_descending(core @ core.T, name=name)
    if core.dtype == np.float32 and _stands_out(values):
        return moment_values(core.astype(np.float64), name=name)
    return values.astype(np.float64)


def moment_vectors(core: Matrix, *, name: str = "matrix") -> tuple[Vector, Matrix]:
    """The eigenvalues of `core core'` with eigenvectors, in the core's own precision; see `moment_values`."""
    values, vectors = eigh_descending(core @ core.T, name=name)
    if core.dtype == np.float32 and _stands_out(values):
        return moment_vectors(core.astype(np.float64), name=name)
    return values, vectors


def _stands_out(values: Vector) -> bool:
    return bool(values[0] > SPREAD * values.mean())


def magnitude(weight: Matrix) -> float:
    """The power of two at or below the largest absolute value, 1 for a zero matrix.

    Squares of what is divided by it neither over- nor underflow, and the division itself does not round.

    Example:
        >>> magnitude(np.array([[3.0, -5.0]])), magnitude(np.zeros((1, 1)))
        (4.0, 1.0)
    """
    # Without a copy of its absolute values, which for large matrices is memory.
    largest = max(float(weight.max(initial=0.0)), -float(weight.min(initial=0.0)))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0


def tail_shares(energies: Vector) -> Vector:
    """What is left of some energies after the first 0, 1, ..., k of them, as a share of all; zeros if there is none."""
    # Summed from the small end, so that a tail near zero keeps its digits.
    tail = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return tail / tail[0] if tail[0] > 0 else np.zeros_like(tail)
