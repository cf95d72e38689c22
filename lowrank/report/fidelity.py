"""How near a result is to the dense model: in words, and a row for each set, for every place that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank.core.share import percent
from lowrank.results.parts import FIDELITY, Quality, SetQuality

FIGURES = {
    "agreement": "same first choice",
    "ranking": "nearest neighbours kept, nDCG@10",
    "explained": "variance explained",
    "spearman": "similarities, Spearman",
    "cosine": "mean cosine to the dense outputs",
    "kl": "KL divergence from the dense output",
    "relative_error": "relative error of the output",
}
"""What is measured against the dense model, what tells most first."""
MEANING = {
    "logits": "the first choice is the same",
    "embedding": "the nearest neighbours are the same, in their order (nDCG@10)",
    "values": "the share of the variance of its outputs that is explained",
    "choices": "the whole numbers that it gives are the same",
}
"""What the answer is, by what the output is."""


@dataclass(frozen=True, slots=True)
class SetRow:
    """What was measured on one set."""

    name: str
    """With the output that the figures are of, where there are several."""
    samples: int
    dense_rounded: float | None
    """The fidelity of the dense model in fewer bits."""
    int8: float | None
    """That of the result in eight bits."""
    fidelity: float
    is_worst: bool
    figures: dict[str, float]
    """All measures but the one that is the fidelity, by their keys."""


def rows_of_sets(quality: Quality | None) -> list[SetRow]:
    """A row for each set, the data first; none in a report from before there were sets."""
    sets = (quality and quality.sets) or []
    return [_row(quality, each) for each in sets if quality is not None]


def _row(quality: Quality, each: SetQuality) -> SetRow:
    dense_rounded, int8 = (_fidelity_of(other, each.name) for other in (quality.dense_rounded, quality.int8))
    same = FIDELITY.get(each.kind or quality.kind or "", "")
    return SetRow(
        f"{each.name}, {each.output}" if each.output else each.name,
        each.samples,
        dense_rounded,
        int8,
        each.fidelity,
        each.name == quality.worst and len(_sets(quality)) > 1,
        {name: each.figures[name] for name in FIGURES if name in each.figures and name != same},
    )


def _fidelity_of(quality: Quality | None, name: str) -> float | None:
    return next((row.fidelity for row in _sets(quality) if row.name == name), None)


def _sets(quality: Quality | None) -> list[SetQuality]:
    return (quality and quality.sets) or []


def columns_of_sets(quality: Quality | None) -> tuple[list[str], list[tuple[str, ...]]]:
    """A table of all sets: the heads of its columns, short ones, and a line of cells for each set."""
    rows = rows_of_sets(quality)
    dtype = (quality and quality.dense_rounded and quality.dense_rounded.dtype) or "rounded"
    given = {
        f"dense {dtype}": [row.dense_rounded for row in rows],
        "compressed": [row.fidelity for row in rows],
        "compressed int8": [row.int8 for row in rows],
    }
    shown = {head: values for head, values in given.items() if any(value is not None for value in values)}
    names = [name for name in FIGURES if any(name in row.figures for row in rows)]
    heads = ["set", *shown, *(FIGURES[name] for name in names), "samples"]
    lines = [
        (
            row.name,
            *("" if (value := values[i]) is None else percent(value) for values in shown.values()),
            *(f"{row.figures[name]:.4f}" if name in row.figures else "" for name in names),
            f"{row.samples:,}",
        )
        for i, row in enumerate(rows)
    ]
    return heads, lines
