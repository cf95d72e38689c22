"""Symmetric eigenproblems and the bases they give: the one place where anything is decomposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from lowrank.errors import DecompositionError

# scipy carries no types.
_lapack: Any = scipy.linalg

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def eigh_descending(symmetric: Matrix, *, name: str = "matrix") -> tuple[Vector, Matrix]:
    """Eigenvalues of a positive semi-definite matrix, largest first and none negative, with eigenvectors.

    LAPACK's divide and conquer (`syevd`, called through numpy, which lets other threads run meanwhile) first; if it
    does
    not converge, QR iteration (`syev`), which is slower and fails on other inputs. If both fail the error names
    the matrix: never an unconverged result.

    Args:
        symmetric: n x n; only its lower triangle is read.
        name: what to call the matrix in an error.

    Returns:
        n eigenvalues, and the n x n matrix whose columns are the eigenvectors in the same order.

    Raises:
        DecompositionError: if no solver converges.

    Example:
        >>> eigh_descending(np.diag([1.0, 4.0]))[0].tolist()
        [4.0, 1.0]
    """
    for solve in (np.linalg.eigh, _qr_iteration):
        try:
            values, vectors = solve(symmetric)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(values).all():
            return np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1])
    raise DecompositionError(
        f"{name}: the eigenproblem of its {symmetric.shape[0]} x {symmetric.shape[0]} moment did not converge "
        "with either LAPACK driver; check the weight for extreme values, or leave it out with --exclude"
    )


def _qr_iteration(symmetric: Matrix) -> tuple[Vector, Matrix]:
    return _lapack.eigh(symmetric, driver="ev", check_finite=False)


def eigvalsh_descending(symmetric: Matrix, *, name: str = "matrix") -> Vector:
    """The eigenvalues alone, largest first and none negative; see `eigh_descending`."""
    try:
        values = np.linalg.eigvalsh(symmetric)
    except np.linalg.LinAlgError:
        return eigh_descending(symmetric, name=name)[0]
    return np.maximum(values[::-1], 0.0)


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
    if weight.ndim == 3:
        return np.sqrt(np.sum([np.square(singular_values(w, name=name)) for w in weight], axis=0))
    rows, cols = weight.shape
    scale = magnitude(weight)
    unit = weight / scale
    gram = unit @ unit.T if rows <= cols else unit.T @ unit
    return scale * np.sqrt(eigvalsh_descending(gram, name=name))


def magnitude(weight: Matrix) -> float:
    """The largest absolute value, 1 for a zero matrix: squares of what is divided by it neither over- nor underflow."""
    # Without a copy of its absolute values, which for large matrices is memory.
    return max(float(weight.max(initial=0.0)), -float(weight.min(initial=0.0))) or 1.0


def tail_shares(energies: Vector) -> Vector:
    """What is left of some energies after the first 0, 1, ..., k of them, as a share of all; zeros if there is none."""
    # Summed from the small end, so that a tail near zero keeps its digits.
    tail = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return tail / tail[0] if tail[0] > 0 else np.zeros_like(tail)
