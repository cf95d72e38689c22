"""Numbers that are in a format already are found to be: their codes stand for them, and no others pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lowrank.core.rounding.codes import nearest
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.rounding.grid import codes_on_grid


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    rows=st.integers(1, 30),
    cols=st.integers(3, 70),
    moved=st.floats(0.5, 1.0),
    seed=st.integers(0, 1000),
)
def test_what_a_format_holds_comes_back(name: str, rows: int, cols: int, moved: float, seed: int) -> None:
    form, rng = FORMATS[name], np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, cols)) * rng.lognormal(size=(rows, 1))
    matrix[rng.random(rows) < 0.1] = 0
    # Scales of other numbers, as training leaves them: the largest code need not be in use.
    units = form.units(matrix)
    numbers = nearest(moved * matrix / np.where(units == 0, 1, units), form.bits) * units
    for on_grid in (form.codes(matrix).matrix(), numbers):
        stored = on_grid.astype(np.float32).astype(np.float64)
        codes = codes_on_grid(stored, form)
        assert codes is not None and codes.bits == form.bits
        assert form.levels[0] <= codes.codes.min() and codes.codes.max() <= form.levels[1]
        assert_allclose(codes.matrix(), stored, atol=1e-6 * np.abs(stored).max(initial=0.0))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_other_numbers_are_not(name: str) -> None:
    form, rng = FORMATS[name], np.random.default_rng(0)
    assert codes_on_grid(rng.standard_normal((40, 64)), form) is None
    numbers = form.codes(rng.standard_normal((40, 64))).matrix()
    numbers[-1, 5] *= 1.01
    assert codes_on_grid(numbers, form) is None
