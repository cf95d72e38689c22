"""How near a result is to the dense model: in words, and a row for each set, for every place that shows it."""

from __future__ import annotations

from dataclasses import dataclass

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
    fidelity: float
    is_worst: bool
    figures: dict[str, float]
    """All measures but the one that is the fidelity, by their keys."""


def rows_of_sets(quality: Quality | None) -> list[SetRow]:
    """A row for each set, the data first; none in a report from before there were sets."""
    sets = (quality and quality.sets) or []
    return [_row(quality, each) for each in sets if quality is not None]


def _row(quality: Quality, each: SetQuality) -> SetRow:
    rounded = next((row for row in _sets(quality.dense_rounded) if row.name == each.name), None)
    same = FIDELITY.get(each.kind or quality.kind or "", "")
    return SetRow(
        f"{each.name}, {each.output}" if each.output else each.name,
        each.samples,
        rounded and rounded.fidelity,
        each.fidelity,
        each.name == quality.worst and len(_sets(quality)) > 1,
        {name: each.figures[name] for name in FIGURES if name in each.figures and name != same},
    )


def _sets(quality: Quality | None) -> list[SetQuality]:
    return (quality and quality.sets) or []
