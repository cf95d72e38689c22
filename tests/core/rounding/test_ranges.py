"""Ranges that are found on data: what they clip makes all else finer, and never costs more than it gains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.rounding.ranges import CODES, Range, bounds_of, found_ranges, range_of


@given(st.floats(-1e6, 0), st.floats(0, 1e6), st.booleans())
def test_what_is_in_a_range_is_at_most_half_a_step_away(low: float, high: float, signed: bool) -> None:
    found = range_of(low, high, signed)
    assert found.least <= found.zero <= found.least + CODES
    numbers = np.linspace(low, high, 100)
    # The zero is a code itself, so that an end can be half a step outside.
    assert np.abs(found.rounded(numbers) - numbers).max() <= 1.01 * found.scale
    assert found.rounded(np.zeros(1)).tolist() == [0.0]


@pytest.mark.parametrize("signed", [False, True])
def test_a_range_loses_no_more_than_that_of_all_numbers(signed: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 8)).astype(np.float32)
    rows[0, 0] = 60
    batches = [{"x": part} for part in np.split(rows, 4)]
    bounds = bounds_of(batches)
    (found,) = found_ranges(batches, bounds, {"x": np.ones(8)}, signed).values()
    whole = range_of(*bounds["x"], signed)

    def lost(each: Range, weights: np.ndarray) -> float:
        return float((np.square(each.rounded(rows) - rows) * weights).sum())

    assert found.signed == signed and lost(found, np.ones(8)) <= lost(whole, np.ones(8)) and found.scale < whole.scale
    # A large number that nothing reads is clipped further; one that counts for much is not clipped.
    unread, dear = np.ones(8), np.ones(8)
    unread[0], dear[0] = 0, 1e4
    (other,) = found_ranges(batches, bounds, {"x": unread}, signed).values()
    assert other.scale < found.scale and lost(other, unread) < 0.5 * lost(whole, unread)
    (kept,) = found_ranges(batches, bounds, {"x": dear}, signed).values()
    assert kept.rounded(rows[:1, :1])[0, 0] == pytest.approx(60, abs=kept.scale)


def test_a_value_that_is_always_zero_has_a_range() -> None:
    batches = [{"x": np.zeros((3, 4), np.float32)}, {"x": np.zeros((0, 4), np.float32)}]
    (found,) = found_ranges(batches, bounds_of(batches), {"x": np.ones(4)}, False).values()
    assert found.scale > 0 and found.rounded(np.zeros(2)).tolist() == [0.0, 0.0]
