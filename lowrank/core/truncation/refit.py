"""Refitting a replacement to what it really sees: closed form, on the outputs of the dense model.

A weight is chosen on the inputs of the dense model, but in the compressed one those have changed. With x the input that
it sees there and y the output that the dense layer gave for the same token, the best weight of rank r is known
(reduced-rank regression, Izenman 1975; AA-SVD, 2026, and SAES-SVD, ICLR 2026, for this use of it). A ridge toward the
weight as it was keeps directions that the data hardly shows, and a blend of y with what the dense weight makes of x
keeps a layer from correcting too much of what others have lost; both are chosen on a fold that the fit did not see.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]

from lowrank.core.linalg.eigen import Matrix, Vector, column_basis, eigh_descending
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import curved_roots
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted, pivot

_lapack: Any = scipy.linalg

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean variance of an input."""
BLENDS = (0.75, 0.5)
"""Shares of the dense output in what is fitted, beside the whole of it."""
ROUNDING = 1e-12
"""Gains below this share of the output's energy are rounding."""


@dataclass(frozen=True, eq=False)
class Joint:
    """Sums over tokens of what a layer saw in the compressed model, and of what the dense one gave."""

    inputs: Matrix
    """Sum of `x x'`."""
    cross: Matrix
    """Sum of `y x'`."""
    input_total: Vector
    output_total: Vector
    output_energy: float
    """Sum of `|y|^2`."""
    tokens: int

    def __add__(self, other: Joint) -> Joint:
        return Joint(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def seen_through(self, root: Matrix) -> Joint:
        """The same moments of `root y` in place of `y`, but for its energy, which is that of a constant."""
        return replace(self, cross=root @ self.cross, output_total=root @ self.output_total, output_energy=0.0)

    def error(self, weight: Matrix, bias: Vector) -> float:
        """Mean `|y - W x - b|^2`."""
        fitted = np.vdot(weight @ self.inputs, weight) + self.tokens * np.vdot(bias, bias)
        fitted += 2 * np.vdot(bias, weight @ self.input_total)
        met = np.vdot(self.cross, weight) + np.vdot(bias, self.output_total)
        return float(self.output_energy - 2 * met + fitted) / max(self.tokens, 1)

    def centred(self, shifts: bool) -> tuple[Matrix, Matrix, Vector, Vector]:
        """Second moments of x and of y with x, about their means where a bias can make up for those; and the means."""
        count = max(self.tokens, 1)
        x, y = self.input_total / count, self.output_total / count
        if not shifts:
            return self.inputs / count, self.cross / count, 0.0 * x, 0.0 * y
        return self.inputs / count - np.outer(x, x), self.cross / count - np.outer(y, x), x, y


def refitted(
    replacement: Replacement,
    original: Matrix,
    bias: Vector | None,
    fit: Joint,
    judge: Joint,
    *,
    curvature: Matrix | None = None,
    name: str = "weight",
) -> Replacement | None:
    """The same structure at the same rank with other numbers; None if none of them is better on the judging fold.

    Args:
        replacement: as it is in the compressed model; its inputs and outputs are those of the moments.
        original: what the ridge shrinks to: the dense weight, or its rows that are left.
        bias: the layer's bias there, None if it has none.
        fit: moments that choose the numbers.
        judge: moments that choose the ridge, and then the blend.
        curvature: of the model's output with respect to that of the layer, where the errors are to be seen through it.
        name: the weight's name, for errors.
    """
    roots = None if curvature is None else curved_roots(curvature, name)
    moments = judge if roots is None else judge.seen_through(roots[0])

    def lost(matrix: Matrix, shift: Vector) -> float:
        return moments.error(matrix, shift) if roots is None else moments.error(roots[0] @ matrix, roots[0] @ shift)

    before = _matrix(replacement)
    shifts = bias is not None
    best, fitted = lost(before, bias if bias is not None else np.zeros(len(before))), None
    inputs, cross, x_mean, y_mean = fit.centred(shifts)
    scale = float(np.trace(inputs)) / len(inputs)
    if not scale > 0:
        return None
    anchor = _anchor(replacement, original)
    alone, least = anchor @ inputs, ROUNDING * judge.output_energy / max(judge.tokens, 1)
    chosen = RIDGES[0]
    for turn, ridge, blend in [*((0, r, 1.0) for r in RIDGES), *((1, 0.0, b) for b in BLENDS)]:
        if turn and fitted is None:
            break
        ridge = chosen if turn else ridge
        damped = inputs + ridge * scale * np.eye(len(inputs))
        target = blend * cross + (1 - blend) * alone + ridge * scale * anchor
        try:
            candidate = _solved(replacement, damped, target, roots, name)
        except np.linalg.LinAlgError:
            # An input with a mean far above its variance: its moment is only sound with a larger ridge.
            continue
        matrix = _matrix(candidate)
        shift = y_mean - matrix @ x_mean
        error = lost(matrix, shift)
        if error < best - least:
            best, chosen, fitted = error, ridge, replace(candidate, bias=shift if shifts else replacement.bias)
    return fitted


def can_refit(replacement: Replacement) -> bool:
    """Whether the replacement's outputs are those of the dense layer, or some of them."""
    factors = replacement.factors
    return not isinstance(factors, Narrow) or factors.outputs is None or not factors.padded


def kept_outputs(replacement: Replacement, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which outputs of the dense layer a replacement gives."""
    factors = replacement.factors
    if isinstance(factors, Narrow) and factors.outputs is not None:
        return np.flatnonzero(factors.outputs >= 0)
    return np.arange(rows)


def _matrix(replacement: Replacement) -> Matrix:
    factors = replacement.factors
    return np.asarray(factors.matrix if isinstance(factors, Narrow) else factors.product(), np.float64)


def _anchor(replacement: Replacement, original: Matrix) -> Matrix:
    """A layer that reads other inputs than it did can only be held to itself."""
    factors = replacement.factors
    if isinstance(factors, Narrow) and factors.inputs is not None:
        return np.asarray(factors.matrix, np.float64)
    return original


def _solved(
    replacement: Replacement, damped: Matrix, target: Matrix, roots: tuple[Matrix, Matrix] | None, name: str
) -> Replacement:
    factors = replacement.factors
    if structure_named(replacement.structure).shares_basis:
        assert isinstance(factors, Factors)
        # The basis belongs to other weights too: only what follows it is free.
        right = np.asarray(factors.right, np.float64)
        inner = right @ damped @ right.T
        inner += 1e-9 * np.trace(inner) / len(inner) * np.eye(len(inner))
        left = _lapack.solve(inner, right @ target.T, assume_a="pos", check_finite=False).T
        return replace(replacement, factors=Factors(left, factors.right))
    solved = _lapack.solve(damped, target.T, assume_a="pos", check_finite=False).T
    if isinstance(factors, Narrow):
        return replace(replacement, factors=replace(factors, matrix=solved))
    weighted = solved if roots is None else roots[0] @ solved
    # A tall weight's directions lie in the space of its columns, which is the smaller problem.
    basis, core = column_basis(weighted)
    _, vectors = eigh_descending(core @ damped @ core.T, name=name)
    directions = vectors[:, : factors.rank] if basis is None else basis @ vectors[:, : factors.rank]
    pair = Factors(directions if roots is None else roots[1] @ directions, directions.T @ weighted).balanced()
    fitted = pivot(pair) if isinstance(factors, Pivoted) else replace(factors, left=pair.left, right=pair.right)
    return replace(replacement, factors=fitted)
