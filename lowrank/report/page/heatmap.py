"""The heat map: what is kept of every weight, by block and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.core.structures import structure_named
from lowrank.report.page.positions import row_labels
from lowrank.report.page.spectra import ShownWeight
from lowrank.report.page.svg import percent

SHADES = 7
"""Of the ramp of colours."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One weight."""

    number: str
    """Its rank, or the word for none."""
    share: float
    """What the colour tells: of the numbers that are kept or, before a plan, of the full rank at 95 % energy."""
    tip: str
    dtype: str = ""
    """Where one was chosen."""

    @property
    def shade(self) -> int:
        """Of the ramp, from nothing to all."""
        return min(int(self.share * SHADES), SHADES - 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table whose longer side runs down, so that a narrow screen holds it."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def grid_of(weights: Sequence[ShownWeight]) -> Grid:
    """All weights in their places."""
    labels = row_labels(weight.place.row for weight in weights)
    kinds = list(dict.fromkeys(weight.place.kind for weight in weights))
    cells = {(labels[weight.place.row], weight.place.kind): _cell(weight) for weight in weights}
    blocks = list(dict.fromkeys(labels.values()))
    if len(kinds) > len(blocks):
        rows = [(kind, tuple(cells.get((block, kind)) for block in blocks)) for kind in kinds]
        return Grid("Layer", tuple(blocks), tuple(rows))
    rows = [(block, tuple(cells.get((block, kind)) for kind in kinds)) for block in blocks]
    return Grid("", tuple(kinds), tuple(rows))


def _cell(weight: ShownWeight) -> Cell:
    choice = weight.choice
    if choice is None:
        rank = weight.best.marks[1][0]
        share = rank / max(weight.full_rank, 1)
        return Cell(str(rank), share, f"{weight.name}: rank {rank} of {weight.full_rank} keeps 95 % of the energy")
    number = "dense" if structure_named(choice.structure).is_dense else str(choice.number)
    kept = f"keeps {percent(choice.share)} of its numbers"
    tip = f"{weight.name}: {choice.words}; {kept}, predicted error {choice.error:.3f}"
    return Cell(number, choice.share, tip, "" if choice.dtype == "float32" else choice.dtype)
