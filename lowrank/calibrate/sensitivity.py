"""Measured sensitivity: how much an error in one weight's output moves the model's output. No labels needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration
from lowrank.core.analysis import Folds, WeightAnalysis
from lowrank.core.factors import directions
from lowrank.core.linalg import Matrix
from lowrank.progress import Track

KEEP = 0.3
"""Each weight is truncated to the rank that keeps this share of it. The ratio that is measured hardly depends on it."""
BATCHES = 8
TOKENS = 2048
FLOOR = 1e-3
"""Of the median: a weight that these samples happen not to move is not free to be destroyed."""


def measure_sensitivity(
    calibration: Calibration,
    records: Sequence[WeightAnalysis],
    grams: Mapping[str, Folds],
    read: Callable[[str], Matrix],
    track: Track,
) -> tuple[WeightAnalysis, ...]:
    """The records with their `sensitivity` measured.

    It is the squared relative error of the model's output with this weight alone truncated, over the weight's own
    squared
    relative error.

    Layer errors are not comparable as they are: a feed-forward output may carry most of its energy in a few directions
    that never matter, and then looks easy to truncate. One measurement puts all layers on the scale of the model's
    output (the idea of LEMS, ICML 2026, with the squared relative output error in place of a divergence).
    """
    backend = calibration.backend
    chosen = _some(calibration.heldout or calibration.fit)
    reference = [backend.run(feed).astype(np.float64) for feed in chosen]
    scale = sum(float(np.square(y).sum()) for y in reference)
    measured: list[float] = []
    for record in track(records, "measuring sensitivity", len(records)):
        truncated, own = _truncated(record, read(record.weight.name), grams.get(record.weight.name))
        with backend.swapped(record.weight.name, truncated):
            lost = sum(float(np.square(backend.run(f) - y).sum()) for f, y in zip(chosen, reference, strict=True))
        measured.append(lost / scale / own if own > 0 and scale > 0 else 0.0)
    positive = [s for s in measured if s > 0 and np.isfinite(s)]
    floor = FLOOR * median(positive) if positive else 1.0
    return tuple(
        replace(record, sensitivity=max(s, floor) if np.isfinite(s) else max(positive, default=1.0))
        for record, s in zip(records, measured, strict=True)
    )


def _some(batches: Sequence[Feed]) -> list[Feed]:
    """A few batches, spread over the lengths that there are, cut to an equal share of the tokens."""
    count = min(BATCHES, len(batches))
    spread = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    return [{name: values[: _rows(batch, count)] for name, values in batch.items()} for batch in spread]


def _rows(batch: Feed, count: int) -> int:
    first = next(iter(batch.values()))
    return max(1, TOKENS // count // (first.shape[1] if first.ndim == 2 else 16))


def _truncated(record: WeightAnalysis, matrix: Matrix, folds: Folds | None) -> tuple[Matrix, float]:
    weight = record.weight
    rank = max(1, int(KEEP * weight.params / (weight.rows + weight.cols)))
    chosen = directions(matrix, folds.fit if folds else None, name=weight.name)
    return np.asarray(chosen.truncate(matrix, rank).product(), np.float64), float(record.error_curve[rank])
