"""SciPy's LAPACK and BLAS, called so that other threads run meanwhile.

The same drivers are faster there than in NumPy's build (by half, measured with `tools/bench_scale.py`), but SciPy's own
wrappers hold the interpreter. `scipy.linalg.cython_lapack` and `cython_blas` give the routines' addresses, which is
what they are for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAPACK, BLAS = "scipy.linalg.cython_lapack", "scipy.linalg.cython_blas"

BLOCK = 64
"""Columns that LAPACK takes at once."""
LARGEST = 30_000
"""The largest size of a matrix whose workspace can be counted in 32 bits."""


def syevd(symmetric: NDArray[Any], vectors: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Eigenvalues, ascending, and if asked for eigenvectors as columns, by divide and conquer.

    Args:
        symmetric: n x n, float64 or float32, n up to `LARGEST`; only its lower triangle is read.
        vectors: whether eigenvectors are wanted.

    Raises:
        LinAlgError: if it does not converge.

    Example:
        >>> syevd(np.diag([4.0, 1.0]), vectors=False)[0].tolist()
        [1.0, 4.0]
    """
    size, dtype = len(symmetric), symmetric.dtype
    # Row by row in C is column by column in Fortran, so the lower triangle is called the upper one.
    matrix = np.array(symmetric, order="C")
    values = np.empty(size, dtype)
    # Without room for blocks of columns LAPACK goes column by column, half as fast.
    work = np.empty(1 + 6 * size + 2 * size**2 if vectors else 1 + (2 + BLOCK) * size, dtype)
    whole = np.empty(3 + 5 * size if vectors else 1, np.intc)
    info = ctypes.c_int(0)
    routine = _routine(LAPACK, "ssyevd" if dtype == np.float32 else "dsyevd", 11)
    routine(
        ctypes.c_char_p(b"V" if vectors else b"N"),
        ctypes.c_char_p(b"U"),
        _count(size),
        _of(matrix),
        _count(max(size, 1)),
        _of(values),
        _of(work),
        _count(len(work)),
        _of(whole),
        _count(len(whole)),
        ctypes.byref(info),
    )
    if info.value:
        raise np.linalg.LinAlgError(f"syevd did not converge ({info.value})")
    return values, matrix.T if vectors else None


def geqp3(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The triangle and the order of a QR decomposition of `rows'` with column pivoting: `rows[order]' = Q triangle`.

    The row with the largest remainder comes next (Businger and Golub 1965). `Q` is not formed.

    Args:
        rows: n x r, float64 or float32.

    Returns:
        min(r, n) x n, and n indices.

    Example:
        >>> triangle, order = geqp3(np.array([[1.0], [2.0]]))
        >>> np.abs(triangle).tolist(), order.tolist()
        ([[2.0, 1.0]], [1, 0])
    """
    count, rank = rows.shape
    # Row by row in C is column by column in Fortran, so this is the transpose already.
    matrix = np.array(rows, order="C")
    order, scales, info = np.zeros(count, np.intc), np.empty(min(rows.shape), matrix.dtype), ctypes.c_int(0)
    work = np.empty(2 * count + (count + 1) * BLOCK, matrix.dtype)
    routine = _routine(LAPACK, "sgeqp3" if matrix.dtype == np.float32 else "dgeqp3", 9)
    routine(
        _count(rank),
        _count(count),
        _of(matrix),
        _count(max(rank, 1)),
        _of(order),
        _of(scales),
        _of(work),
        _count(len(work)),
        ctypes.byref(info),
    )
    if info.value:
        raise np.linalg.LinAlgError(f"geqp3 refused its argument {-info.value}")
    return np.triu(matrix.T[: min(rows.shape)]), order.astype(np.int64) - 1


def add_square(total: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
    """Add `rows' rows` to the lower triangle of a matrix, in its place; what is above its diagonal means nothing then.

    A product that is made apart is mirrored and added, which takes longer than the product where rows are few.

    Args:
        total: n x n, in C's order.
        rows: k x n, in C's order.

    Raises:
        ValueError: if they are not.

    Example:
        >>> total = np.zeros((2, 2))
        >>> add_square(total, np.array([[1.0, 2.0]]))
        >>> np.tril(total).tolist()
        [[1.0, 0.0], [2.0, 4.0]]
    """
    count, width = rows.shape
    if total.shape != (width, width):
        raise ValueError(f"{count} x {width} has no square of {' x '.join(map(str, total.shape))}")
    if not (total.flags.c_contiguous and rows.flags.c_contiguous and total.dtype == rows.dtype == np.float64):
        raise ValueError("a square is added in float64, and in C's order")
    one = ctypes.byref(ctypes.c_double(1.0))
    routine = _routine(BLAS, "dsyrk", 10)
    # Columns in Fortran are rows in C, so the lower triangle is called the upper one.
    names = ctypes.c_char_p(b"U"), ctypes.c_char_p(b"N")
    size = _count(max(width, 1))
    routine(*names, _count(width), _count(count), one, _of(rows), size, one, _of(total), size)


def _count(number: int) -> Any:
    return ctypes.byref(ctypes.c_int(number))


def _of(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _routine(library: str, name: str, arguments: int) -> Callable[..., None]:
    """A routine by its name; ctypes lets go of the interpreter while it runs."""
    # scipy carries no types.
    module: Any = import_module(library)
    capsule: Any = module.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    assert address is not None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)
