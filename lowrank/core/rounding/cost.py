"""What it costs to store a matrix in fewer bits: bytes in a file, and error of its output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lowrank.core.cost import INDEX
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.rounding.formats import FORMATS, SCALE, even_error
from lowrank.core.truncation.gram import Gram
from lowrank.core.weight import Weight

SAMPLE = 256
"""Rows of a matrix that are rounded to see what that loses: each is rounded by itself."""
HALF = 1e-7
"""Squared relative error of sixteen bits, at most."""
FORMS = ("int8", "int4")
"""Formats that are on offer beside floating numbers."""
FACTORS = ("two_factor", "shared")
"""Structures that are two matrices in a row, what lies between them made even before it is rounded."""
BITS = {"float32": 32.0, "float16": 16.0, "int8": 8.0, "int4": 4.25}
NODES = {"float32": 200, "float16": 350, "int8": 800, "int4": 2000}
"""Bytes of the nodes that apply one matrix, about."""


def rounding_errors(weight: Weight, matrix: Matrix, fit: Gram | None, judge: Gram | None) -> dict[str, float]:
    """Squared relative errors of a weight's output by format, of a part of its rows.

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
    found: dict[str, float] = {}
    for name in FORMS:
        change = rows - FORMATS[name].codes(rows, moments[0]).matrix()
        lost, total = _energy(change, moments[1]), _energy(rows, moments[1])
        found[name] = lost / total if total > 0 else 0.0
    return found


def _energy(rows: Matrix, moment: Matrix | None) -> float:
    return float(np.vdot(rows if moment is None else rows @ moment, rows))


def rounded_error(structure: str, dtype: str, dense: Sequence[float], tail: Vector) -> Vector:
    """The squared relative error that a type adds to a structure's own, at each rank.

    Args:
        structure: its name.
        dtype: of what it stores.
        dense: errors of rounding the structure's weights as they are.
        tail: the share of the first weight's plain energy beyond each rank.
    """
    if dtype not in FORMATS:
        return np.full_like(tail, HALF if dtype == "float16" else 0.0)
    if structure == "residual":
        # Steps are as wide as what is left of the matrix.
        return dense[0] * tail + even_error("int8")
    # The errors of weights in a row add up; the second factor of a pair sees even latents.
    return np.full_like(tail, sum(dense) + (len(dense) * even_error(dtype) if structure in FACTORS else 0.0))


def file_bytes(
    structure: str, ranks: NDArray[np.int64], numbers: NDArray[np.int64], weights: Sequence[Weight], dtype: str
) -> Vector:
    """Bytes that a structure takes in a file: numbers, scales, indices, and about what its nodes are.

    Args:
        structure: its name.
        ranks: one or more.
        numbers: that it stores at each rank.
        weights: that it holds.
        dtype: of what it stores.
    """
    # Of a table the rows that have a scale each are those that are looked up.
    rows = sum(w.cols if w.is_table else w.rows for w in weights)
    dense = sum(w.params for w in weights)
    nodes = len(weights) * NODES[dtype] * (2 if structure in (*FACTORS, "pivoted") else 1)
    if structure == "residual":
        return dense * BITS[dtype] / 8 + numbers - dense + SCALE * (2.0 * rows + ranks) + nodes + 2 * NODES["int8"]
    found: Vector = numbers.astype(np.float64) * (BITS[dtype] / 8) + nodes
    if dtype in FORMATS:
        found = found + SCALE * (rows + (ranks if structure in FACTORS else 0))
    return found + (INDEX * sum(w.rows for w in weights) if structure == "pivoted" else 0)
