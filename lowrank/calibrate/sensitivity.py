"""Measured sensitivity: how much an error in one weight's output moves the model's output. No labels needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank.calibrate.data import Batch, Calibration
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
    module, signature = calibration.module, calibration.signature
    chosen = _some(calibration.heldout or calibration.fit)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        reference = [signature.call(module, batch).double() for batch in chosen]
        scale = sum(float(y.square().sum()) for y in reference)
        measured: list[float] = []
        for record in track(records, "measuring sensitivity", len(records)):
            truncated, own = _truncated(record, read(record.weight.name), grams.get(record.weight.name))
            with _Swapped(parameters[record.weight.name], record.weight.view.stored_from(truncated)):
                lost = sum(
                    float((signature.call(module, batch).double() - y).square().sum())
                    for batch, y in zip(chosen, reference, strict=True)
                )
            measured.append(lost / scale / own if own > 0 and scale > 0 else 0.0)
    positive = [s for s in measured if s > 0 and np.isfinite(s)]
    floor = FLOOR * median(positive) if positive else 1.0
    return tuple(
        replace(record, sensitivity=max(s, floor) if np.isfinite(s) else max(positive, default=1.0))
        for record, s in zip(records, measured, strict=True)
    )


def _some(batches: Sequence[Batch]) -> list[Batch]:
    """A few batches, spread over the lengths that there are, cut to an equal share of the tokens."""
    count = min(BATCHES, len(batches))
    spread = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    return [{name: values[: _rows(batch, count)] for name, values in batch.items()} for batch in spread]


def _rows(batch: Batch, count: int) -> int:
    first = next(iter(batch.values()))
    return max(1, TOKENS // count // (first.shape[1] if first.dim() == 2 else 16))


def _truncated(record: WeightAnalysis, matrix: Matrix, folds: Folds | None) -> tuple[Matrix, float]:
    weight = record.weight
    rank = max(1, int(KEEP * weight.params / (weight.rows + weight.cols)))
    chosen = directions(matrix, folds.fit if folds else None, name=weight.name)
    return np.asarray(chosen.truncate(matrix, rank).product(), np.float64), float(record.error_curve[rank])


class _Swapped:
    """A parameter that holds other numbers inside the block."""

    def __init__(self, parameter: Tensor, stored: NDArray[np.generic]) -> None:
        self.parameter, self.stored, self.before = parameter, stored, parameter.data

    def __enter__(self) -> None:
        self.parameter.data = torch.from_numpy(np.ascontiguousarray(self.stored)).to(self.before)

    def __exit__(self, *_: object) -> None:
        self.parameter.data = self.before
