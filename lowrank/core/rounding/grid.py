"""Numbers that are in a format already, as training with rounding leaves them: their codes, found again exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.codes import LARGEST, STEPS, Codes, in_blocks
from lowrank.core.rounding.formats import Format

CLOSE = 1e-3
"""How far from a whole number a code may be: what float32 leaves of the largest is below it, and a row of other numbers
is not all so near."""
FIRST = 8
"""Rows that are not zero, which tell whether it is worth looking at the others."""


def codes_on_grid(matrix: Matrix, form: Format) -> Codes | None:
    """The codes of a matrix whose numbers a format holds exactly, as far as float32 can tell; None if it does not.

    Args:
        matrix: rows x cols.
        form: the format.

    Example:
        >>> from lowrank.core.rounding.formats import FORMATS
        >>> rounded = FORMATS["int8"].codes(np.array([[1.0, -2.0, 0.3]])).matrix()
        >>> codes_on_grid(rounded, FORMATS["int8"]).matrix().tolist() == rounded.tolist()
        True
    """
    first = matrix[np.flatnonzero(matrix.any(1))[:FIRST]]
    if 0 < len(first) < len(matrix) and codes_on_grid(first, form) is None:
        return None
    if form.stepped:
        return _stepped(matrix, form)
    rows, cols = matrix.shape
    width = form.block or cols
    parts = in_blocks(matrix, width, form.bits).reshape(-1, width)
    low, high = form.levels
    scale, missing = np.zeros(len(parts), np.float32), np.abs(parts).max(1) > 0
    for code in [*range(-low, 0, -1), *(range(low, 0) if low != -high else ())]:
        trial = _trial(parts[missing], code)
        fits = _whole(parts[missing] / trial[:, None], form).all(1)
        scale[np.flatnonzero(missing)[fits]] = trial[fits]
        missing[np.flatnonzero(missing)[fits]] = False
        if not missing.any():
            break
    if missing.any():
        return None
    safe = np.where(scale == 0, 1, scale).astype(np.float64)[:, None]
    codes = np.rint(parts / safe).astype(np.int8).reshape(rows, -1)[:, :cols]
    return Codes(codes, scale.reshape(rows, -1), form.bits, width)


def _trial(parts: Matrix, code: int) -> NDArray[np.float32]:
    """The scale of each row if its largest number had this code, or minus it."""
    return (np.abs(parts).max(1) / code).astype(np.float32)


def _whole(values: Matrix, form: Format) -> NDArray[np.bool_]:
    """Which values are codes."""
    (low, high), near = form.levels, np.rint(values)
    codes = (np.abs(values - near) < CLOSE) & (near >= low) & (near <= high)
    return codes & (near % 2 == 1) if form.is_odd else codes


def _stepped(matrix: Matrix, form: Format) -> Codes | None:
    """With a scale for each row, and a step for each block."""
    assert form.block is not None
    rows, cols = matrix.shape
    parts = in_blocks(matrix, form.block, form.bits)
    scale, steps = np.zeros(rows, np.float32), np.zeros(parts.shape[:2], np.int8)
    codes = np.full(parts.shape, int(form.is_odd), np.int8)
    missing = np.flatnonzero(np.abs(parts).max((1, 2)) > 0)
    for multiple in _multiples(form):
        if not len(missing):
            break
        trial = _trial(parts[missing].reshape(len(missing), -1), multiple)
        units = parts[missing] / trial.astype(np.float64)[:, None, None]
        found, each, coded = _steps_of(units, form)
        done = missing[found]
        scale[done], steps[done], codes[done] = trial[found], each[found], coded[found]
        missing = missing[~found]
    if len(missing):
        return None
    return Codes(codes.reshape(rows, -1)[:, :cols], scale[:, None], form.bits, form.block, steps)


def _multiples(form: Format) -> list[int]:
    """What a step times a code can be, without its sign, the largest first."""
    (low, high), (least, most) = form.levels, STEPS
    codes = range(low, high + 1, 2 if form.is_odd else 1)
    return sorted({abs(step * code) for step in range(least, most + 1) for code in codes} - {0}, reverse=True)


def _steps_of(units: Matrix, form: Format) -> tuple[NDArray[np.bool_], NDArray[np.int8], NDArray[np.int8]]:
    """For rows x blocks x block numbers in units of the rows' scales: which rows have steps, these, and the codes."""
    steps, codes = np.zeros(units.shape[:2], np.int8), np.full(units.shape, int(form.is_odd), np.int8)
    open_blocks = np.abs(units).max(-1) > CLOSE
    near = np.rint(units)
    whole = ((np.abs(units - near) < CLOSE) & (np.abs(near) <= LARGEST)).all((1, 2))
    open_blocks[~whole] = False
    for step in _tried():
        values = units[open_blocks] / step
        fits = _whole(values, form).all(-1)
        places = tuple(axis[fits] for axis in np.nonzero(open_blocks))
        steps[places], codes[places] = step, np.rint(values[fits]).astype(np.int8)
        open_blocks[places] = False
    return whole & ~open_blocks.any(1), steps, codes


def _tried() -> Iterator[int]:
    """All steps, the coarsest first: any that fits stands for the same numbers."""
    for size in range(-STEPS[0], 0, -1):
        yield -size
        if size <= STEPS[1]:
            yield size
