"""Three LAPACK drivers, tried in turn on a symmetric problem, with a record of when the first one failed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from lowrank.core.linalg import lapack
from lowrank.errors import DecompositionError

# scipy carries no types.
_lapack: Any = scipy.linalg

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Solved = tuple[Vector, Matrix | None]
"""Eigenvalues in any order and, where they were asked for, eigenvectors as columns."""

TRACE = 1e-8
"""How far the sum of all eigenvalues may be from the trace, as a share of their absolute sum: far above rounding, far
below what a solver that went wrong gives."""

TRACES = 100
"""The same distance in units of the last place, for numbers of 32 bits."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """A decomposition that the usual solver could not do."""

    name: str
    """Name of the weight."""
    driver: str
    """The driver that succeeded."""


_watched: ContextVar[tuple[list[Fallback], ...]] = ContextVar("watched", default=())


@contextmanager
def watched_solvers() -> Generator[list[Fallback]]:
    """The fallbacks of what is decomposed inside the block, filled as it goes.

    A context variable, no global: blocks in other threads see nothing of each other, and `windowed_map` takes the
    block along into its own threads.

    Example:
        >>> with watched_solvers() as used:
        ...     values, vectors = solved(np.eye(2), vectors=True, name="w")
        >>> used
        []
    """
    fallbacks: list[Fallback] = []
    token = _watched.set((*_watched.get(), fallbacks))
    try:
        yield fallbacks
    finally:
        _watched.reset(token)


def solved(symmetric: Matrix, *, vectors: bool, name: str) -> Solved:
    """Eigenvalues of a positive semi-definite matrix, and its eigenvectors if they are asked for.

    Divide and conquer (`syevd`, which lets other threads run meanwhile); if that does not converge, the
    singular value decomposition, which such a matrix has in common with its eigendecomposition: by divide and
    conquer (`gesdd`), then by QR iteration (`gesvd`). Numbers that are not finite, or whose sum is not the trace, count
    as not converged.

    Args:
        symmetric: n x n; only its lower triangle is read.
        vectors: whether eigenvectors are wanted.
        name: what to call the matrix in an error.

    Raises:
        DecompositionError: if it is not finite, or if no driver converges.
    """
    size = symmetric.shape[0]
    if not np.isfinite(symmetric).all():
        # Of such a matrix LAPACK may return anything, or not at all.
        raise DecompositionError(
            f"{name}: its {size} x {size} moment holds NaN or infinity, so the numbers that it was made from are "
            "too large to be squared; check the weight and its inputs for extreme values, or leave it out with "
            "--exclude"
        )
    drivers: tuple[tuple[str, Callable[[Matrix, bool], Solved]], ...] = (
        ("syevd", _syevd),
        ("gesdd", _gesdd),
        ("gesvd", _gesvd),
    )
    for driver, solve in drivers:
        try:
            solution = solve(symmetric, vectors)
        except np.linalg.LinAlgError:
            continue
        if _sound(solution, symmetric):
            if driver != drivers[0][0]:
                for fallbacks in _watched.get():
                    fallbacks.append(Fallback(name, driver))
            return solution
    raise DecompositionError(
        f"{name}: the eigenproblem of its {size} x {size} moment did not converge with any of the LAPACK drivers "
        f"{', '.join(driver for driver, _ in drivers)}; check the weight for extreme values, or leave it out with "
        "--exclude"
    )


def _sound(solution: Solved, symmetric: Matrix) -> bool:
    values, vectors = solution
    if not np.isfinite(values).all() or (vectors is not None and not np.isfinite(vectors).all()):
        return False
    # Means, as a sum of large numbers could overflow.
    size = max(len(values), 1)
    wide, rounding = np.float64, TRACES * float(np.finfo(values.dtype).eps)
    off = abs(float((values / size).sum(dtype=wide)) - float((symmetric.diagonal() / size).sum(dtype=wide)))
    return off <= max(TRACE, rounding) * float((np.abs(values) / size).sum(dtype=wide))


def _syevd(symmetric: Matrix, vectors: bool) -> Solved:
    if len(symmetric) <= lapack.LARGEST:
        return lapack.syevd(symmetric, vectors)
    if not vectors:
        return np.asarray(np.linalg.eigvalsh(symmetric), symmetric.dtype), None
    values, basis = np.linalg.eigh(symmetric)
    return values, basis


def _gesdd(symmetric: Matrix, vectors: bool) -> Solved:
    # With vectors in any case: their signs tell an eigenvalue that rounding made negative from a positive one.
    left, values, right = np.linalg.svd(_whole(symmetric))
    return _from_singular(left, values, right, vectors)


def _gesvd(symmetric: Matrix, vectors: bool) -> Solved:
    left, values, right = _lapack.svd(_whole(symmetric), lapack_driver="gesvd", check_finite=False)
    return _from_singular(left, values, right, vectors)


def _whole(symmetric: Matrix) -> Matrix:
    """Both triangles after the lower one, which is all that the first driver reads."""
    lower = np.tril(symmetric)
    return lower + np.tril(symmetric, -1).T


def _from_singular(left: Matrix, values: Vector, right: Matrix, vectors: bool) -> Solved:
    signs = np.where(np.einsum("ij,ji->j", left, right) < 0, -1.0, 1.0)
    return values * signs, left if vectors else None
