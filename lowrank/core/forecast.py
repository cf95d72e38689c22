"""Forecast: how often a model of some keep ratio is expected to give the dense model's answer, before it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.core.distance import OutputKind

FLOOR = 0.9
"""Fidelity below which a model is not fit for use: one answer in ten is another one."""
STEP = 0.05
"""Budgets that are proposed are multiples of this."""
LEAST = 1e-4
"""A loss of fidelity below this is rounding."""
EXPONENTS = (0.5, 4.0)
"""Of the law by which fidelity is lost, between two points and beyond them."""


@dataclass(frozen=True, slots=True)
class Foretold:
    """What a model of one keep ratio was measured to be, with its factors as they are cut: neither refit nor healed."""

    keep: float
    fidelity: Mapping[str, float]
    """From 0 to 1, by the name of the set of samples."""
    kind: OutputKind = "values"
    """What the output is, and so what the fidelity is a share of."""

    @property
    def worst(self) -> str:
        """The name of the set with the least."""
        return min(self.fidelity, key=lambda name: self.fidelity[name])


def foretold_at(forecast: Sequence[Foretold], keep: float) -> Foretold | None:
    """The forecast at any keep ratio; None without any.

    What is lost of the fidelity follows a power law of the share that is cut, `1 - keep`, between the two points that
    are nearest, and beyond them: nothing is lost at a keep ratio of 1.

    Example:
        >>> known = [Foretold(0.8, {"short texts": 0.98}), Foretold(0.6, {"short texts": 0.92})]
        >>> round(foretold_at(known, 0.7).fidelity["short texts"], 3)
        0.955
    """
    points = sorted(forecast, key=lambda point: -point.keep)
    if not points:
        return None
    cuts = np.log([max(1 - point.keep, 1e-6) for point in points])
    at = float(np.log(max(1 - keep, 1e-6)))
    fidelity: dict[str, float] = {}
    for name in points[0].fidelity:
        lost = np.log([max(1 - point.fidelity[name], LEAST) for point in points])
        # More cut never loses less.
        lost = np.maximum.accumulate(lost)
        fidelity[name] = max(0.0, 1 - float(np.exp(_law(cuts, lost, at))))
    return Foretold(keep, fidelity, points[0].kind)


def _law(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Straight lines between points, whose first and last go on."""
    if len(x) == 1:
        return float(y[0] + 2 * (at - x[0]))
    i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    slope = float(np.clip((y[i + 1] - y[i]) / max(x[i + 1] - x[i], 1e-9), *EXPONENTS))
    inside = x[i] <= at <= x[i + 1]
    if inside:
        return float(np.interp(at, x, y))
    return float(y[i] + slope * (at - x[i]) if at < x[i] else y[i + 1] + slope * (at - x[i + 1]))


def least_keep(forecast: Sequence[Foretold], scales: Mapping[str, float] | None = None) -> float | None:
    """The smallest keep ratio, a multiple of `STEP`, at which every set is expected to reach `FLOOR`; None if none is.

    Args:
        forecast: what was measured.
        scales: by set, what the loss that is foretold is multiplied by: what was measured of a result shows it.
    """
    for keep in np.arange(STEP, 1.0 - STEP / 2, STEP):
        point = foretold_at(forecast, float(keep))
        if point is None:
            return None
        scale = scales or {}
        if all((1 - value) * scale.get(name, 1.0) <= 1 - FLOOR for name, value in point.fidelity.items()):
            return round(float(keep), 2)
    return None
