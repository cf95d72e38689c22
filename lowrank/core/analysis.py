"""Analysis: everything that is known of a model's weights before a rank is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lowrank.core.cost import break_even_rank
from lowrank.core.factors import Directions, directions, measure
from lowrank.core.gram import Gram
from lowrank.core.linalg import Matrix, Vector, singular_values
from lowrank.core.spatial import spatial_curve
from lowrank.core.spectrum import Spectrum
from lowrank.core.weight import Group, Skip, Weight


@dataclass(frozen=True, eq=False)
class WeightAnalysis:
    """One weight's spectra, and the error of truncating it at every rank."""

    weight: Weight
    plain: Spectrum
    activation: Spectrum | None = None
    """In the metric of the calibration data; None without any."""
    heldout: Vector | None = None
    """Squared relative output error at rank 0 ... k on the fold that did not choose the directions."""
    sensitivity: float = 1.0
    """Squared relative error of the model's output for one unit of this weight's own; 1 where it was not measured."""
    spatial: Vector | None = None
    """Squared relative output error of spatial factors at rank 0 ... ; None for what is no k x k convolution."""

    @cached_property
    def error_curve(self) -> Vector:
        """Squared relative error at rank 0 ... k: the best estimate there is (held-out, in-sample, plain)."""
        if self.heldout is not None:
            return self.heldout
        return (self.activation or self.plain).tail_energy

    @property
    def break_even(self) -> int:
        """The largest rank at which two factors are smaller than the matrix."""
        return break_even_rank(*self.weight.shape)


@dataclass(frozen=True, eq=False)
class Folds:
    """The Grams of one layer's data: those that choose directions, and those that judge them."""

    fit: Gram
    heldout: Gram


@dataclass(frozen=True, eq=False)
class Analysis:
    """All spectra of a model, its Grams, its skipped tensors with the reason for each, and its provenance."""

    weights: tuple[WeightAnalysis, ...]
    skips: tuple[Skip, ...] = ()
    grams: Mapping[str, Folds] = field(default_factory=dict[str, Folds])
    """By weight name; weights that share an input share the object."""
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the model is, and the fingerprint of what was read."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was asked for: patterns, targets, calibration."""
    fingerprint: str = ""
    """Of source and settings; a plan names it."""
    notes: tuple[str, ...] = ()
    """What the reader must know: no calibration, layers it never reached, tokens that were not finite."""

    def __getitem__(self, name: str) -> WeightAnalysis:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, WeightAnalysis]:
        return {record.weight.name: record for record in self.weights}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The units of decision: each weight by itself (a tie is one weight already)."""
        return tuple(Group(r.weight.name, (r.weight.name,)) for r in self.weights)

    def params(self, group: Group) -> int:
        """Numbers in the dense weights of a group."""
        return sum(self[name].weight.params for name in group.weights)

    @property
    def dense_params(self) -> int:
        """Numbers in all the targeted weights."""
        return sum(r.weight.params for r in self.weights)

    def directions(self, name: str, matrix: Matrix) -> Directions:
        """The truncation order of one weight, from its fit Gram where there is one."""
        folds = self.grams.get(name)
        return directions(matrix, folds.fit if folds else None, name=name)


def analyze_weight(weight: Weight, matrix: Matrix, folds: Folds | None = None) -> WeightAnalysis:
    """Spectra of one weight, and its held-out error curve when there are Grams.

    Args:
        weight: its record.
        matrix: rows x cols (or a stack of them), float64, finite.
        folds: Grams of its layer's data; None, or without tokens, leaves the plain metric alone.

    Raises:
        DecompositionError: if no solver converges.
    """
    if folds is None or folds.fit.tokens == 0:
        spatial = spatial_curve(weight, matrix, None, None) if weight.spatial else None
        return WeightAnalysis(weight, Spectrum(singular_values(matrix, name=weight.name)), spatial=spatial)
    judge = folds.heldout if folds.heldout.tokens else folds.fit
    found = measure(matrix, folds.fit, judge, name=weight.name)
    # The errors of spatial factors can only be compared with the others' in the metric of whole patches.
    known = weight.spatial is not None and folds.fit.side == "input"
    spatial = spatial_curve(weight, matrix, folds.fit, judge) if known else None
    return WeightAnalysis(
        weight, Spectrum(found.plain), Spectrum(found.activation), heldout=found.curve, spatial=spatial
    )
