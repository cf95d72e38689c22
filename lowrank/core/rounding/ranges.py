"""Ranges of what products read, for graphs whose scales are fixed beforehand: found on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2)
"""Shares of the largest and of the smallest number that a range may span: what it clips can make all others finer."""
BINS = 4096
"""Of the histogram that a range is chosen by."""
CODES = 255
"""Steps between the smallest and the largest of eight bits."""


@dataclass(frozen=True, slots=True)
class Range:
    """How numbers are rounded to eight bits: `scale * (code - zero)`.

    Without a sign codes are 0 to 255; with one they are -128 to 127, and the zero is 0.
    """

    scale: float
    zero: int
    signed: bool = False

    @property
    def least(self) -> int:
        """The smallest code."""
        return -128 if self.signed else 0

    def rounded(self, numbers: Array) -> Array:
        """Numbers as an engine reads them.

        Example:
            >>> Range(0.5, 2).rounded(np.array([-3.0, 0.3, 0.6])).tolist()
            [-1.0, 0.5, 0.5]
        """
        codes = np.clip(np.rint(numbers / self.scale) + self.zero, self.least, self.least + CODES)
        return (codes - self.zero) * self.scale


def range_of(low: float, high: float, signed: bool) -> Range:
    """The range that spans two numbers and zero, whose scale is a float32."""
    low, high = min(low, 0.0), max(high, 0.0)
    if signed:
        low, high = -max(-low, high), max(-low, high)
    scale = float(np.float32((high - low) / CODES)) or 1.0
    return Range(scale, 0 if signed else round(-low / scale), signed)


class Histogram:
    """What numbers a value has had, weighted by what an error of each costs.

    Args:
        low: the smallest number of all.
        high: the largest.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self._edges = np.linspace(low, high, BINS + 1)
        self._counts = np.zeros(BINS)

    def add(self, rows: Array, weights: Array) -> None:
        """Count vectors, rows x cols, each number by the weight of its column."""
        places = np.clip(((rows - self.low) * (BINS / (self.high - self.low))).astype(np.int64), 0, BINS - 1)
        each = np.broadcast_to(weights, rows.shape)
        self._counts += np.bincount(places.ravel(), each.ravel(), minlength=BINS)

    def best(self, signed: bool) -> Range:
        """The range that loses least of all numbers."""
        middles = (self._edges[:-1] + self._edges[1:]) / 2

        def lost(found: Range) -> float:
            return float(self._counts @ np.square(found.rounded(middles) - middles))

        if signed:
            most = max(-self.low, self.high)
            return min((range_of(-most * share, most * share, True) for share in SHARES), key=lost)
        lows = sorted({self.low * share for share in SHARES})
        highs = sorted({self.high * share for share in SHARES}, reverse=True)
        return min((range_of(low, high, False) for low in lows for high in highs), key=lost)


def bounds_of(batches: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest number of each value, and zero."""
    bounds: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, numbers in batch.items():
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = float(numbers.min(initial=low)), float(numbers.max(initial=high))
    return bounds


def found_ranges(
    batches: Iterable[Mapping[str, Array]],
    bounds: Mapping[str, tuple[float, float]],
    weights: Mapping[str, Array],
    signed: bool,
) -> dict[str, Range]:
    """The range of each value that loses least of what is made of it.

    Args:
        batches: numbers of each value, ... x cols, the same that the bounds are of.
        bounds: what `bounds_of` gave.
        weights: what an error in each column costs: the sum of squares of the columns that it is multiplied with.
        signed: whether codes have a sign, and the zero is 0.
    """
    counted = {name: Histogram(low, high) for name, (low, high) in bounds.items() if low < high}
    for batch in batches:
        for name, numbers in batch.items():
            if name in counted:
                counted[name].add(numbers.reshape(-1, numbers.shape[-1]), weights[name])
    empty = dict.fromkeys(bounds.keys() - counted.keys(), range_of(0.0, 0.0, signed))
    return {**empty, **{name: histogram.best(signed) for name, histogram in counted.items()}}
