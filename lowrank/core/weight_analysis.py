"""The analysis of one weight: its spectra, what rounding it loses, and the error curves that structures measure."""

from __future__ import annotations

from lowrank.core.analysis import Folds, WeightAnalysis, ridge_of
from lowrank.core.linalg.eigen import Matrix, Vector, singular_values
from lowrank.core.rounding.cost import rounding_errors
from lowrank.core.structures import structures
from lowrank.core.truncation.directions import measure
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import Weight


def analyze_weight(
    weight: Weight,
    matrix: Matrix,
    folds: Folds | None = None,
    rounded: bool = True,
    values: Vector | None = None,
) -> WeightAnalysis:
    """Spectra of one weight, and its held-out error curve when there are Grams.

    Args:
        weight: its record.
        matrix: rows x cols (or a stack of them), float64, finite.
        folds: Grams of its layer's data; None, or with nothing but zeros in them, leaves the plain metric alone.
        rounded: find what storing it in fewer bits would lose, too, which a budget of bytes asks for.
        values: its singular values, if they are known and there are no Grams.

    Raises:
        DecompositionError: if no solver converges.
    """
    folds = folds if folds is not None and folds.fit.informs else None
    own = {structure.name: structure.measure_weight(weight, matrix, folds) for structure in structures()}
    curves = {name: curve for name, curve in own.items() if curve is not None}
    fit, judge = (None, None) if folds is None else (folds.fit, folds.judge)
    lost = rounding_errors(weight, matrix, fit, judge) if rounded else {}
    if folds is None:
        plain = Spectrum(singular_values(matrix, name=weight.name) if values is None else values)
        return WeightAnalysis(weight, plain, curves=curves, rounding=lost)
    figures = measure(matrix, folds.fit, folds.judge, ridge=ridge_of(weight), name=weight.name)
    return WeightAnalysis(
        weight,
        Spectrum(figures.plain),
        Spectrum(figures.activation),
        # Errors on what chose the directions are those of the spectrum.
        heldout=figures.curve if judge is folds.heldout else None,
        curves=curves,
        rounding=lost,
    )
