"""Calibration on batches that a user's own script gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from lowrank.artifacts.files import hash_array, hash_json
from lowrank.backends.base import Backend
from lowrank.backends.inputs import MASK, NOT_RUN, Feed, Signature, rows_at_once
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.folds import split_folds
from lowrank.errors import CalibrationError

ENOUGH = 10
"""This many batches are split into folds as they are; of fewer the samples are."""


def calibration_of(backend: Backend, feeds: Sequence[Feed], signature: Signature) -> Calibration:
    """Batches in three folds, without the padding at the end of rows.

    Args:
        backend: the model.
        feeds: batches in its inputs' types.
        signature: that they fit.

    Raises:
        CalibrationError: if the model does not run on them.
    """
    rows = [_rows(feed) for feed in feeds]
    by_row = len(feeds) < ENOUGH and all(count is not None for count in rows)
    # Of batches that cannot be cut each is one sample.
    units = [(i, row) for i, count in enumerate(rows) for row in range((count or 0) if by_row else 1)]

    def batches(fold: Sequence[int]) -> tuple[Feed, ...]:
        if not by_row:
            return tuple(chain.from_iterable(_unpadded(feeds[i]) for i in fold))
        parts: list[Feed] = []
        for number, feed in enumerate(feeds):
            wanted = [units[i][1] for i in fold if units[i][0] == number]
            each = rows_at_once(feed)
            for start in range(0, len(wanted), each):
                part = wanted[start : start + each]
                parts += _unpadded({name: array[part] for name, array in feed.items()})
        return tuple(parts)

    digest = hash_json([{name: hash_array(array) for name, array in feed.items()} for feed in feeds])
    provenance = {"batches": len(feeds), "samples": len(units), "hash": digest}
    fed, folds = backend.fed_with(signature, feeds[0]), map(batches, split_folds(len(units)))
    if isinstance(fed.signature, str):
        reason = fed.signature.removeprefix(NOT_RUN)
        raise CalibrationError(f"the model cannot be run on the calibration data: {reason}")
    return Calibration(*folds, backend=fed, provenance=provenance)


def _rows(feed: Feed) -> int | None:
    """How many samples a batch has; None if its inputs do not have the first axis in common."""
    counts = {array.shape[0] if array.ndim else None for array in feed.values()}
    return counts.pop() if len(counts) == 1 else None


def _unpadded(feed: Feed) -> list[Feed]:
    """Rows of one length together, cut to it, where a mask says that rows end in padding."""
    mask = feed.get(MASK)
    if mask is None or mask.ndim != 2 or mask.all():
        return [feed]
    lengths = (mask != 0).sum(1)
    if not np.array_equal(mask != 0, np.arange(mask.shape[1]) < lengths[:, None]):
        return [feed]
    if any(array.shape[:2] != mask.shape for array in feed.values()):
        return [feed]
    return [
        {name: array[lengths == length, :length] for name, array in feed.items()}
        for length in np.unique(lengths)
        if length
    ]
