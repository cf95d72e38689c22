"""LAPACK by its addresses does what SciPy's wrappers do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg

from lowrank.core.linalg.lapack import add_square, geqp3

_lapack: Any = scipy.linalg


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (200, 70), (70, 200), (1, 1)])
def test_pivoted_qr_is_that_of_scipy(shape: tuple[int, int], dtype: Any) -> None:
    rows = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    triangle, order = geqp3(rows)
    _, expected, indices = _lapack.qr(rows.T, mode="economic", pivoting=True)
    assert order.tolist() == indices.tolist()
    assert np.array_equal(triangle, expected)


@pytest.mark.parametrize("shape", [(0, 0), (4, 0)])
def test_pivoted_qr_of_nothing(shape: tuple[int, int]) -> None:
    triangle, order = geqp3(np.zeros(shape))
    assert triangle.shape == (0, shape[0]) and sorted(order) == list(range(shape[0]))


@pytest.mark.parametrize("shape", [(5, 3), (3, 70), (0, 4), (4, 0)])
def test_a_square_is_added_in_its_place(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape)
    total = np.ones((shape[1], shape[1]))
    add_square(total, rows)
    assert np.allclose(np.tril(total), np.tril(1 + rows.T @ rows), rtol=1e-14)
    assert np.array_equal(np.triu(total, 1), np.triu(np.ones_like(total), 1))


def test_a_square_of_another_size_or_type_is_refused() -> None:
    with pytest.raises(ValueError, match="5 x 3 has no square of 4 x 4"):
        add_square(np.zeros((4, 4)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="float64"):
        add_square(np.zeros((3, 3), np.float32), np.zeros((5, 3)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="C's order"):
        add_square(np.zeros((3, 3)), np.zeros((3, 5)).T)
