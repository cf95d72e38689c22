"""What it costs to store a matrix in fewer bits: bytes in a file, and error of its output."""

from __future__ import annotations

import numpy as np

from lowrank.core.linalg.eigen import Matrix
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight

SAMPLE = 256
"""Rows of a matrix that are rounded to see what that loses: each is rounded by itself."""
HALF = 1e-7
"""Squared relative error of sixteen bits, at most."""
FORMS = ("int8", "int4", "int3", "int2")
"""Formats that are on offer beside floating numbers."""
BITS = {"float32": 32.0, "float16": 16.0, "int8": 8.0, "int4": 4.25, "int3": 3.25, "int2": 2.25}
NODES = {"float32": 200, "float16": 350, "int8": 800, "int4": 2000, "int3": 2500, "int2": 2000}
"""Bytes of the nodes that apply one matrix, about."""


def rounding_errors(weight: Weight, matrix: Matrix, fit: Gram | None, judge: Gram | None) -> dict[str, float]:
    """Squared relative errors of a weight's output by format, of a part of its rows; without those of three and two
    bits that lose more than all of it.

    Args:
        weight: its record; nothing is offered for convolutions and stacks, nor beyond float32.
        matrix: rows x cols, float64.
        fit: the moment that rounding is fitted to; None, or one of outputs, gives that of inputs that are all alike.
        judge: what errors are measured on.
    """
    kinds = {layer.kind for layer in weight.layers}
    if weight.stack > 1 or not kinds or not kinds <= {"linear", "lookup"}:
        return {}
    if np.abs(matrix).max(initial=0.0) > np.finfo(np.float32).max:
        # Scales are float32.
        return {}
    table = "lookup" in kinds
    rows = matrix.T if table else matrix
    rows = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    known = not table and fit is not None and judge is not None and fit.side == judge.side == "input"
    moments = [gram.moment / gram.tokens if known and gram and gram.informs else None for gram in (fit, judge)]
    errors: dict[str, float] = {}
    for name in FORMS:
        change = rows - FORMATS[name].codes(rows, moments[0]).matrix()
        lost, total = _energy(change, moments[1]), _energy(rows, moments[1])
        error = lost / total if total > 0 else 0.0
        # Odd codes hold no zero, so that they spoil a weight that has to ignore a large input.
        if error <= 1 or not FORMATS[name].is_odd:
            errors[name] = error
    return errors


def _energy(rows: Matrix, moment: Matrix | None) -> float:
    return float(np.vdot(rows if moment is None else rows @ moment, rows))
