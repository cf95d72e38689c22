"""Analysis: everything that is known of a model's weights before a rank is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank.core.cost import break_even_rank
from lowrank.core.forecast import Foretold
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.truncation.directions import (
    RIDGE,
    UNSEEN,
    Directions,
    curved_curve,
    curved_directions,
    directions,
    plain_truncation,
)
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.known import KnownDirections
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.core.weight import Group, Skip, Weight

Measured = tuple[tuple[float, float], ...]
"""Pairs of squared relative errors, rising: of the weights' own output, and of the model's output that it led to."""


class Leading(Protocol):
    """Leading singular vectors that were kept."""

    def get(self, name: str, /) -> Matrix | None:
        """Those of a weight's smaller side, as columns; None if they are not known."""
        ...


class Numbers(Protocol):
    """Reads the numbers of a model's weights and biases."""

    def read(self, name: str) -> Matrix:
        """A weight as a rows x cols float64 matrix, or a stack of them."""
        ...

    def bias(self, name: str) -> Vector | None:
        """The bias of the layer that applies a weight, if it has one."""
        ...


def loss_of(errors: Vector, measured: Measured) -> Vector:
    """The model's squared output error for a group's own: through the measured pairs, a power law between them.

    Beyond the pairs the law of the two nearest goes on, with an exponent between 0.5 and 2; with one pair it is
    proportional. Without any it is the error itself.

    Example:
        >>> loss_of(np.array([0.0, 0.1, 0.2]), ((0.1, 0.01),)).tolist()
        [0.0, 0.01, 0.02]
    """
    sound = [(own, out) for own, out in measured if own > 0 and out > 0]
    if not sound:
        return errors * 1.0
    x, y = (np.log(np.array(column)) for column in zip(*sorted(sound), strict=True))
    slopes = np.clip(np.diff(y) / np.maximum(np.diff(x), 1e-9), *EXPONENTS) if len(x) > 1 else np.ones(1)
    # From the larger errors down, where what was measured stands out of rounding most.
    y = np.concatenate([[y[-1]], y[-1] - np.cumsum((slopes * np.diff(x))[::-1])])[::-1] if len(x) > 1 else y
    logs = np.log(np.maximum(errors, 1e-300))
    inside = np.interp(logs, x, y)
    below, above = y[0] + slopes[0] * (logs - x[0]), y[-1] + slopes[-1] * (logs - x[-1])
    losses = np.exp(np.where(logs < x[0], below, np.where(logs > x[-1], above, inside)))
    return np.where(errors > 0, losses, 0.0)


EXPONENTS = (0.5, 2.0)


@dataclass(frozen=True, eq=False)
class WeightAnalysis:
    """One weight's spectra, and the error of truncating it at every rank."""

    weight: Weight
    plain: Spectrum
    activation: Spectrum | None = None
    """In the metric of the calibration data; None without any."""
    heldout: Vector | None = None
    """Squared relative output error at rank 0 ... k on the fold that did not choose the directions."""
    measured: Measured = ()
    """What truncating this weight alone did to the model's output; empty where it was not measured."""
    curves: Mapping[str, Vector] = field(default_factory=dict[str, Vector])
    """Squared relative output error at rank 0 ... k, by name of the structures that measure it themselves."""
    rounding: Mapping[str, float] = field(default_factory=dict[str, float])
    """Squared relative output error of rounding the dense weight, by format; empty for what is not rounded."""

    @property
    def sensitivity(self) -> float:
        """Squared error of the model's output for one unit of this weight's own, where most was cut; 1 if unknown."""
        own, lost = self.measured[-1] if self.measured else (1.0, 1.0)
        return lost / own if own > 0 else 1.0

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
class CouplingAnalysis:
    """What one structure can make of coupled weights."""

    group: Group
    structure: str
    ranks: NDArray[np.int64]
    """Where the error is known: ascending, the last one being full."""
    errors: Vector
    """Squared relative error of what the coupling gives, at those ranks, on the fold that judges."""
    order: NDArray[np.int64] | None = None
    """The neurons in the order in which they are kept; None for other couplings."""
    measured: Measured = ()

    def error_at(self, ranks: NDArray[np.int64]) -> Vector:
        """The error at any ranks, a power law between the known ones."""
        floor = 1e-300
        errors = np.exp(np.interp(ranks, self.ranks, np.log(np.maximum(self.errors, floor))))
        return np.where(errors > 2 * floor, errors, 0.0)


@dataclass(frozen=True, slots=True)
class Context:
    """How much more each weight matters in a model that is compressed already than in the dense one."""

    keep: float
    """The keep ratio it was measured at."""
    factors: Mapping[str, float]
    """By weight name: what its measured loss is multiplied by."""


@dataclass(frozen=True, eq=False)
class Folds:
    """The Grams of one layer's data: those that choose directions, and those that judge them."""

    fit: Gram
    heldout: Gram

    @property
    def judge(self) -> Gram:
        """The held-out fold; with too few samples for one, or with nothing but zeros in it, that which chose."""
        return self.heldout if self.heldout.informs else self.fit


@dataclass(frozen=True, eq=False)
class Analysis:
    """All spectra of a model, its Grams, its skipped tensors with the reason for each, and its provenance."""

    weights: tuple[WeightAnalysis, ...]
    skips: tuple[Skip, ...] = ()
    couplings: tuple[CouplingAnalysis, ...] = ()
    """Weights that can be narrowed together, each with what that loses."""
    contexts: tuple[Context, ...] = ()
    """By falling keep ratio; none where nothing was measured."""
    forecast: tuple[Foretold, ...] = ()
    """By falling keep ratio; none where nothing was tried."""
    grams: Mapping[str, Folds] = field(default_factory=dict[str, Folds])
    """By weight name; weights that share an input share the object."""
    curvatures: Mapping[str, Matrix] = field(default_factory=dict[str, Matrix])
    """Of the model's output with respect to that of a weight, for the weights whose truncation it was found to help."""
    leading: Leading = field(default_factory=dict[str, Matrix])
    """For truncation in the plain metric."""
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the model is, and the fingerprint of what was read."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was asked for: patterns, targets, calibration."""
    fingerprint: str = ""
    """Of source and settings; a plan names it."""
    notes: tuple[str, ...] = ()
    """What the reader must know: no calibration, layers it never reached, tokens that were not finite."""
    known: KnownDirections = field(default_factory=KnownDirections, repr=False)
    """Shared by all that are made from this one."""

    def __getitem__(self, name: str) -> WeightAnalysis:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, WeightAnalysis]:
        return {record.weight.name: record for record in self.weights}

    @cached_property
    def singles(self) -> tuple[Group, ...]:
        """Each weight by itself (a tie is one weight already)."""
        return tuple(Group(r.weight.name, (r.weight.name,)) for r in self.weights)

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """All that can be decided on, by name: each weight by itself, and each coupling. They overlap."""
        return {group.name: group for group in (*self.singles, *(each.group for each in self.couplings))}

    @cached_property
    def _couplings(self) -> dict[tuple[str, str], CouplingAnalysis]:
        return {(each.group.name, each.structure): each for each in self.couplings}

    def coupling(self, group: Group, structure: str) -> CouplingAnalysis | None:
        """What a structure can make of a group's coupling; None if nothing."""
        return self._couplings.get((group.name, structure))

    @cached_property
    def heads(self) -> Mapping[str, int]:
        """How many heads a weight's channels are in, where their order in each is free: by weight name."""
        heads: dict[str, int] = {}
        for coupling in (each.group.coupling for each in self.couplings):
            if coupling is not None and coupling.kind in ("query_key", "value_output"):
                by_key = coupling.kind == "query_key"
                sides = (coupling.heads, coupling.kv_heads) if by_key else (coupling.kv_heads, coupling.heads)
                heads |= dict(zip(coupling.weights, sides, strict=True))
        return heads

    def measured(self, group: Group, structure: str) -> Measured:
        """What cutting a group with a structure did to the model's output."""
        if group.coupling is None:
            return self[group.name].measured
        record = self.coupling(group, structure)
        return record.measured if record else ()

    def loss(self, group: Group, structure: str, errors: Vector, keep: float) -> Vector:
        """What own errors of a group do to the model's output, in a model of this keep ratio: squared, relative."""
        return loss_of(errors, self.measured(group, structure)) * self._factor(group, keep)

    def _factor(self, group: Group, keep: float) -> float:
        """Between the contexts by the logarithm of the keep ratio; 1 in the dense model."""
        if not self.contexts:
            return 1.0
        logs = [[np.log(context.factors[name]) for name in group.weights] for context in self.contexts]
        places = [0.0, *(np.log(context.keep) for context in self.contexts)]
        means = [0.0, *(float(np.mean(each)) for each in logs)]
        at: float = -float(np.log(keep))
        return float(np.exp(np.interp(at, [-float(place) for place in places], means)))

    def weights_of(self, group: Group) -> list[Weight]:
        """The weights of a group, in its order."""
        return [self[name].weight for name in group.weights]

    def params(self, group: Group) -> int:
        """Numbers in the dense weights of a group."""
        return sum(weight.params for weight in self.weights_of(group))

    @property
    def dense_params(self) -> int:
        """Numbers in all the targeted weights."""
        return sum(r.weight.params for r in self.weights)

    def directions(self, name: str, matrix: Matrix) -> Directions:
        """The truncation order of one weight, from its fit Gram where there is one."""
        folds = self.grams.get(name)
        if folds and name in self.curvatures:
            return self._directions_with_curvature(name, matrix, self.curvatures[name])
        ridge = ridge_of(self[name].weight)
        fit = folds.fit if folds else None
        return self.known.of(name, matrix, fit, None, partial(directions, matrix, fit, ridge=ridge, name=name))

    def truncated(self, name: str, matrix: Matrix, rank: int) -> Factors:
        """The best factors of a rank that are known for one weight: for its data, or in the plain metric."""
        if name in self.grams or matrix.ndim == 3:
            return self.directions(name, matrix).truncate(matrix, rank)
        return plain_truncation(matrix, rank, name, self.leading.get(name))

    def _directions_with_curvature(self, name: str, matrix: Matrix, curvature: Matrix) -> Directions:
        ridge, fit = ridge_of(self[name].weight), self.grams[name].fit
        make = partial(curved_directions, matrix, fit, curvature, ridge=ridge, name=name)
        return self.known.of(name, matrix, fit, curvature, make)

    def with_curvature(self, name: str, matrix: Matrix, curvature: Matrix) -> Analysis:
        """The same analysis with one weight's truncation in the two-sided metric, and its errors measured anew."""
        folds = self.grams[name]
        curve = curved_curve(self._directions_with_curvature(name, matrix, curvature), matrix, folds.judge)
        weights = tuple(replace(r, heldout=curve) if r.weight.name == name else r for r in self.weights)
        return replace(self, weights=weights, curvatures={**self.curvatures, name: curvature})


def ridge_of(weight: Weight) -> float:
    """How much the plain metric counts beside that of the data; see `directions`."""
    return UNSEEN if weight.is_table else RIDGE
