"""The heat map: what is kept of every weight, by block and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.core.structures import structure_named
from lowrank.report.page.positions import row_labels
from lowrank.report.page.spectra import Seen
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


def grid_of(weights: Sequence[Seen]) -> Grid:
    """All weights in their places."""
    labels = row_labels(seen.place.row for seen in weights)
    kinds = list(dict.fromkeys(seen.place.kind for seen in weights))
    cells = {(labels[seen.place.row], seen.place.kind): _cell(seen) for seen in weights}
    blocks = list(dict.fromkeys(labels.values()))
    if len(kinds) > len(blocks):
        rows = [(kind, tuple(cells.get((block, kind)) for block in blocks)) for kind in kinds]
        return Grid("Layer", tuple(blocks), tuple(rows))
    rows = [(block, tuple(cells.get((block, kind)) for kind in kinds)) for block in blocks]
    return Grid("", tuple(kinds), tuple(rows))


def _cell(seen: Seen) -> Cell:
    choice = seen.choice
    if choice is None:
        rank = seen.best.marks[1][0]
        share = rank / max(seen.full_rank, 1)
        return Cell(str(rank), share, f"{seen.name}: rank {rank} of {seen.full_rank} keeps 95 % of the energy")
    number = "dense" if structure_named(choice.structure).is_dense else str(choice.number)
    tip = f"{seen.name}: {choice.told}; keeps {percent(choice.kept)} of its numbers, predicted error {choice.error:.3f}"
    return Cell(number, choice.kept, tip, "" if choice.dtype == "float32" else choice.dtype)
