"""Spectra as they are shown: few enough points for a page, and what was chosen of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, WeightAnalysis
from lowrank.core.plan import Plan
from lowrank.core.structures import structure_named
from lowrank.core.truncation.spectrum import Spectrum
from lowrank.report.page.positions import Place, part_of

ENERGIES = (0.90, 0.95, 0.99)
POINTS = 15_000
"""Of all spectra of a page together."""
FEWEST, MOST = 12, 48
"""Of one."""
UNSEEN = 1e-12
"""Of the largest singular value; smaller ones are rounding."""


@dataclass(frozen=True, slots=True)
class Line:
    """One spectrum, as shares of its largest value."""

    values: tuple[float, ...]
    """At the ranks of the weight's `ranks`."""
    energies: tuple[float, ...]
    """Share of the energy that those ranks keep."""
    marks: tuple[tuple[int, float], ...]
    """Rank that keeps each of `ENERGIES`, and the value there."""
    stable: float
    effective: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a plan makes of a weight."""

    structure: str
    words: str
    """What it is, for people."""
    rank: int | None
    """Where that is in the weight's own spectrum; None where it is no rank of it."""
    number: int
    """The plan's own rank."""
    share: float
    """Of the numbers of its group, those that are kept."""
    error: float
    """Relative, predicted, of what its group gives."""
    dtype: str


@dataclass(frozen=True, slots=True)
class ShownWeight:
    """One weight as it is shown."""

    name: str
    place: Place
    part: str
    rows: int
    cols: int
    stack: int
    params: int
    dtype: str
    break_even: int
    error_there: float
    """Relative error of two factors at that rank."""
    sensitivity: float
    ranks: tuple[int, ...]
    plain: Line
    activation: Line | None
    choice: Chosen | None

    @property
    def full_rank(self) -> int:
        """The largest rank it can have."""
        return min(self.rows, self.cols)

    @property
    def best(self) -> Line:
        """In the metric of the data, where there is any."""
        return self.activation or self.plain


def shown_weights(
    analysis: Analysis, plan: Plan | None, places: dict[str, Place], couplings: dict[str, str]
) -> tuple[ShownWeight, ...]:
    """All weights of an analysis."""
    count = int(np.clip(POINTS / max(len(analysis.weights), 1), FEWEST, MOST))
    chosen = choices(analysis, plan) if plan is not None else {}
    return tuple(_shown(record, count, places, couplings, chosen) for record in analysis.weights)


def _shown(
    record: WeightAnalysis,
    count: int,
    places: dict[str, Place],
    couplings: dict[str, str],
    chosen: dict[str, Chosen],
) -> ShownWeight:
    weight = record.weight
    ranks = picked(weight.full_rank, count)
    return ShownWeight(
        name=weight.name,
        place=places[weight.name],
        part=part_of(weight.name, weight.role, couplings.get(weight.name, "")),
        rows=weight.rows,
        cols=weight.cols,
        stack=weight.stack,
        params=weight.params,
        dtype=weight.dtype,
        break_even=record.break_even,
        error_there=float(np.sqrt(record.error_curve[record.break_even])),
        sensitivity=record.sensitivity,
        ranks=tuple(map(int, ranks)),
        plain=_line(record.plain, ranks),
        activation=_line(record.activation, ranks) if record.activation else None,
        choice=chosen.get(weight.name),
    )


def picked(full: int, count: int) -> NDArray[np.int64]:
    """About so many of the ranks 1 ... full, closer together where spectra are steep.

    Example:
        >>> picked(100, 6).tolist()
        [1, 5, 22, 51, 100]
    """
    if full <= count:
        return np.arange(1, full + 1)
    half = count - count // 2
    ranks = np.concatenate([np.geomspace(1, full, half), np.linspace(1, full, count // 2)])
    return np.unique(np.rint(ranks).astype(np.int64))


def _line(spectrum: Spectrum, ranks: Sequence[int] | NDArray[np.int64]) -> Line:
    top = float(spectrum.values[0]) if len(spectrum.values) else 0.0
    shares = np.maximum(spectrum.values / top, UNSEEN) if top > 0 else np.full(len(spectrum.values), UNSEEN)
    at = np.asarray(ranks)
    marks = [max(spectrum.rank_at_energy(energy), 1) for energy in ENERGIES]
    return Line(
        values=tuple(map(float, shares[at - 1])),
        energies=tuple(map(float, 1 - spectrum.tail_energy[at])),
        marks=tuple((rank, float(shares[rank - 1])) for rank in marks),
        stable=spectrum.stable_rank,
        effective=spectrum.effective_rank,
    )


def choices(analysis: Analysis, plan: Plan) -> dict[str, Chosen]:
    """What a plan makes of each weight, by its name."""
    choices: dict[str, Chosen] = {}
    for option in plan.options:
        group = analysis.groups[option.group]
        share = option.cost / max(analysis.params(group), 1)
        for name in group.weights:
            rank, words = structure_named(option.structure).described(option, name, analysis)
            choices[name] = Chosen(
                option.structure, words, rank, option.rank, share, float(option.error**0.5), option.dtype
            )
    return choices
