"""What is left of a model that was compressed: its error curves, and what of it can be cut again.

Every replaced weight is a matrix of known rank. Its truncations are optimal in the same metric as those of the dense
weight were, and cost no more than the thin factors: the eigenproblem has as many rows as they have columns. If nothing
has changed them since, they are the very truncations of the dense weight: projections on the leading directions of a
projection on more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers, WeightAnalysis, ridge_of
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.truncation.directions import (
    Directions,
    curved_curve,
    curved_directions,
    residual_curve,
    thin_directions,
)
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.truncation.pivoted import Pivoted, pivot
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import Group, Weight
from lowrank.core.weight_analysis import analyze_weight


@dataclass(frozen=True, eq=False)
class CompressedWeights:
    """The numbers of a finished model, by the names and in the coordinates of the dense one."""

    replacements: Mapping[str, Replacement]
    """As they were put in, by weight name."""
    weights: Mapping[str, Weight]
    dense: Numbers
    """Reads the weights that were not replaced."""

    def read(self, name: str) -> Matrix:
        """A weight, or the matrix that stands in its place."""
        replacement = self.replacements.get(name)
        return self.dense.read(name) if replacement is None else dense_of(replacement, self.weights[name])

    def bias(self, name: str) -> Vector | None:
        """The bias of a weight's layer, as wide as the dense one's."""
        replacement = self.replacements.get(name)
        bias = None if replacement is None else replacement.dense_bias(self.weights[name])
        if bias is None or replacement is None:
            return self.dense.bias(name)
        return bias if replacement.rows is None else _placed(bias, replacement.rows, 0)


def dense_of(replacement: Replacement, weight: Weight) -> Matrix:
    """The matrix that a replacement stands for, with its channels where the dense weight's are."""
    matrix = replacement.dense(weight)
    matrix = matrix if replacement.rows is None else _placed(matrix, replacement.rows, 0)
    return matrix if replacement.cols is None else _placed(matrix, replacement.cols, 1)


def _placed(array: Matrix, order: NDArray[np.int64], axis: int) -> Matrix:
    """Channel i of an array back at its place `order[i]`."""
    return np.take(array, np.argsort(order), axis)


def thin_of(replacement: Replacement) -> Factors | None:
    """Two factors of a replacement in the coordinates of the dense weight; None for what is no such product."""
    pair, rows, cols = replacement.factors.pair(), replacement.rows, replacement.cols
    if pair is None:
        return None
    left = pair[0] if rows is None else _placed(pair[0], rows, 0)
    return Factors(left, pair[1] if cols is None else _placed(pair[1], cols, 1))


@dataclass(frozen=True, eq=False)
class Remaining(Analysis):
    """The analysis of a finished model. Errors are relative to what it gives, so that staying as it is has none."""

    now: Mapping[str, Option] = field(default_factory=dict[str, Option])
    """What was chosen, by group, with the error that it was chosen with."""
    fixed: frozenset[str] = frozenset()
    """Groups whose numbers cannot be read back: they stay as they are."""
    thin: Mapping[str, Factors] = field(default_factory=dict[str, Factors])
    """By weight name, where a weight is the product of two factors."""

    @cached_property
    def group_of(self) -> Mapping[str, str]:
        """Of each weight the group that decided on it."""
        return {name: group for group in self.now for name in self.groups[group].weights}

    def directions(self, name: str, matrix: Matrix) -> Directions:
        """The truncation order of what is left of a weight."""
        if name not in self.thin or name in self.curvatures:
            return super().directions(name, matrix)
        folds = self.grams.get(name)
        ridge = ridge_of(self[name].weight)
        return thin_directions(self.thin[name], folds.fit if folds else None, ridge=ridge, name=name)

    def truncated(self, name: str, matrix: Matrix, rank: int) -> Factors:
        """The best factors of a rank that are known for what is left of a weight."""
        return self.directions(name, matrix).truncate(matrix, rank)

    def loss(self, group: Group, structure: str, errors: Vector, keep: float) -> Vector:
        """What own errors of a group add to those of the model's output.

        What is cut now is orthogonal to what was cut before, so that the errors add up: `e = e0 + (1 - e0) e'`.
        """
        before = self.now[group.name].error if group.name in self.now else 0.0
        total = super().loss(group, structure, before + (1 - before) * errors, keep)
        return np.maximum(total - super().loss(group, structure, np.array([before]), keep), 0.0)


def remaining(
    analysis: Analysis,
    options: tuple[Option, ...],
    finished: CompressedWeights,
    fixed: Mapping[str, str],
    changed: bool,
) -> Remaining:
    """The analysis of a finished model from that of the dense one.

    Args:
        analysis: of the dense model.
        options: what was chosen.
        finished: the numbers that are left.
        fixed: groups whose numbers cannot be read back, each with the reason.
        changed: whether weights that were not replaced are others than they were, too.
    """
    now = {option.group: option for option in options}
    thin = {name: each for name, one in finished.replacements.items() if (each := thin_of(one)) is not None}
    grams = {name: _seen(analysis.grams[name], thin.get(name)) for name in analysis.grams}
    narrowed = replace(analysis, grams=grams)
    stuck = {name for group in fixed for name in analysis.groups[group].weights}
    free = {
        name
        for option in options
        if not structure_named(option.structure).fixed_order
        for name in analysis.groups[option.group].weights
        if name not in stuck
    }
    replaced = set(finished.replacements)
    records = tuple(
        _record(r, narrowed, finished, thin) if r.weight.name in free and (changed or r.weight.name in replaced) else r
        for r in analysis.weights
    )
    couplings: list[CouplingAnalysis] = []
    for coupling in analysis.couplings:
        one = now.get(coupling.group.name)
        if one is not None and one.structure == coupling.structure and structure_named(one.structure).fixed_order:
            couplings.append(_rest(coupling, one))
        elif not changed and set(coupling.group.weights) <= free - replaced:
            couplings.append(coupling)
        elif set(coupling.group.weights) <= free:
            couplings += _measured(coupling, grams, finished, one)
    own: dict[str, Any] = {each.name: getattr(narrowed, each.name) for each in fields(Analysis)}
    own |= {"weights": records, "couplings": tuple(couplings)}
    return Remaining(**own, now=now, fixed=frozenset(fixed), thin=thin)


def _seen(folds: Folds, thin: Factors | None) -> Folds:
    """Moments of outputs in the space of a weight's outputs that are left; those of inputs as they are."""
    if thin is None or folds.fit.side == "input" or thin.left.ndim == 3:
        return folds
    basis, _ = np.linalg.qr(thin.left)

    def inside(gram: Gram) -> Gram:
        return replace(gram, moment=basis @ (basis.T @ gram.moment @ basis) @ basis.T)

    return Folds(inside(folds.fit), inside(folds.heldout))


def _record(
    record: WeightAnalysis, analysis: Analysis, finished: CompressedWeights, thin: Mapping[str, Factors]
) -> WeightAnalysis:
    """The record of what is left of a weight: errors at every rank, none from the rank on that it has."""
    weight, name = record.weight, record.weight.name
    factors, folds = thin.get(name), analysis.grams.get(name)
    if factors is None:
        new, one = analyze_weight(weight, finished.read(name), folds, rounded=False), finished.replacements.get(name)
        if one is not None:
            for curve in new.curves.values():
                curve[one.factors.rank :] = 0.0
        return replace(new, measured=record.measured, rounding=record.rounding)
    if folds is not None and name in analysis.curvatures:
        matrix = np.asarray(factors.product(), np.float64)
        chosen = curved_directions(matrix, folds.fit, analysis.curvatures[name], ridge=ridge_of(weight), name=name)
        curve = curved_curve(chosen, matrix, folds.judge)[: factors.rank]
    else:
        chosen = thin_directions(factors, folds.fit if folds else None, ridge=ridge_of(weight), name=name)
        curve = residual_curve(chosen, factors, folds.judge if folds else None)[: factors.rank]
    errors = np.zeros(weight.full_rank + 1)
    errors[: len(curve)] = curve[: len(errors)]
    # Of the spectra nothing but their length is asked for when ranks are chosen from errors.
    values = np.zeros(weight.full_rank)
    energies = chosen.energies if chosen.energies.ndim == 1 else chosen.energies.sum(0)
    values[: min(factors.rank, len(values))] = np.sqrt(energies[: min(factors.rank, len(values))])
    spectrum = Spectrum(values)
    curves = dict(record.curves)
    for structure in (structure_named(each) for each in record.curves):
        if structure.by_rank:
            product = np.asarray(factors.product(), np.float64)
            own = structure.measure_weight(weight, product, folds if folds and folds.fit.informs else None)
            assert own is not None
            own[factors.rank :] = 0.0
            curves[structure.name] = own
    return replace(record, plain=spectrum, activation=spectrum if folds else None, heldout=errors, curves=curves)


def _rest(coupling: CouplingAnalysis, now: Option) -> CouplingAnalysis:
    """The errors of keeping fewer of the channels that are left, in the order that they have."""
    # Every one: between known ranks the error is interpolated, and the last one is zero.
    ranks = np.arange(min(int(coupling.ranks[0]), now.rank), now.rank + 1, dtype=np.int64)
    before = float(coupling.error_at(np.array([now.rank]))[0])
    errors = np.maximum(coupling.error_at(ranks) - before, 0.0) / max(1 - before, 1e-12)
    errors[-1] = 0.0
    return replace(coupling, ranks=ranks, errors=errors)


def _measured(
    coupling: CouplingAnalysis, grams: Mapping[str, Folds], finished: CompressedWeights, now: Option | None
) -> list[CouplingAnalysis]:
    """What a structure can make of weights that may have been cut each by itself, or have a basis in common."""
    own = coupling.group.coupling
    new = None if own is None else structure_named(coupling.structure).measure(own, grams, finished)
    if new is None:
        return []
    errors = new.errors.copy()
    if now is not None and now.structure == new.structure:
        errors[new.ranks >= now.rank] = 0.0
    return [replace(new, errors=errors, measured=coupling.measured)]


def recut(option: Option, analysis: Remaining, finished: CompressedWeights) -> Mapping[str, Replacement]:
    """What replaces each weight of an option's group in the finished model.

    A group that keeps its structure and rank keeps its very numbers, but for an order of channels that neighbours have
    agreed on: that is agreed on anew.
    """
    group, now = analysis.groups[option.group], analysis.now.get(option.group)
    structure = structure_named(option.structure)
    same = now is not None and (now.structure, now.rank) == (option.structure, option.rank)
    if same and structure.replaces:
        return {name: _apart(finished, name) for name in group.weights}
    if now is not None and option.structure == now.structure and structure.leading_channels:
        return {name: _fewer(finished, name, option.rank, now.rank) for name in group.weights}
    return structure.factorize(group, option.rank, analysis, finished)


def _apart(finished: CompressedWeights, name: str) -> Replacement:
    """A replacement with its channels in the order of the dense weight's."""
    one = finished.replacements[name]
    if one.rows is None and one.cols is None and not _is_absorbed(one):
        return one
    factors = thin_of(one)
    assert factors is not None
    bias = None if one.bias is None else finished.bias(name)
    return Replacement(one.structure, pivot(factors) if isinstance(one.factors, Pivoted) else factors, bias)


def _is_absorbed(one: Replacement) -> bool:
    return isinstance(one.factors, Pivoted) and (one.factors.order is None or one.factors.side == "input")


def _fewer(finished: CompressedWeights, name: str, rank: int, now: int) -> Replacement:
    """The first channels of every head, which are those that matter most."""
    one = finished.replacements[name]
    narrow = one.factors
    assert isinstance(narrow, Narrow)
    of_outputs = narrow.outputs is not None
    count = narrow.matrix.shape[0 if of_outputs else 1] // now
    channels: NDArray[np.int64] = (np.arange(count, dtype=np.int64)[:, None] * now + np.arange(rank)).ravel()
    if narrow.outputs is None:
        assert narrow.inputs is not None
        return replace(
            one, factors=replace(narrow, matrix=narrow.matrix[:, channels], inputs=narrow.inputs[channels], rank=rank)
        )
    places = np.full(narrow.matrix.shape[0] + 1, -1, np.int64)
    places[channels] = np.arange(len(channels))
    bias = one.bias[channels] if one.bias is not None and one.bias.size else one.bias
    outputs = places[narrow.outputs]
    return replace(one, factors=replace(narrow, matrix=narrow.matrix[channels], outputs=outputs, rank=rank), bias=bias)
