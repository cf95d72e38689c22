"""The fidelity of a model on several sets, of which the worst counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.core.distance import OutputKind
from lowrank.evaluate.dense_outputs import Room
from lowrank.evaluate.fidelity import Judge, Likeness, Runs
from lowrank.progress import Track, silent
from lowrank.results.parts import Quality, SetQuality

UNCOUNTED = "none of its positions counts"


class Judges:
    """One judge for each set that a dense model is compared on. The sets, and the dense model's outputs on them, are
    made when they are first asked for, and once.

    A set in which no position counts is left out, if it is not the only one.

    Args:
        dense: the model.
        sets: that of the data first; see `judging_sets`.
    """

    def __init__(self, dense: Backend, sets: Iterable[JudgingSet]) -> None:
        self.dense, self._source = dense, sets

    @cached_property
    def _given(self) -> list[JudgingSet]:
        return list(self._source)

    @cached_property
    def sets(self) -> list[JudgingSet]:
        """Those that are judged on."""
        counted = signature_of(self.dense).counted
        some = [each for each in self._given if any(c is None or np.any(c) for c in map(counted, each.feeds))]
        return some or self._given[:1]

    @property
    def notes(self) -> list[str]:
        """A sentence on the sets that are left out, if any are."""
        left_out = [f"{e.name} ({e.left_out or UNCOUNTED})" for e in self._given if e not in self.sets]
        return [f"not judged on {', '.join(left_out)}"] if left_out else []

    @cached_property
    def _judges(self) -> list[Judge]:
        room = Room()
        return [Judge(self.dense, each.feeds, room) for each in self.sets]

    @property
    def kind(self) -> OutputKind:
        """What the output is, by its shape, too."""
        return self._judges[0].kind

    def against(self, model: Runs, track: Track = silent) -> Iterator[tuple[JudgingSet, Likeness]]:
        """The likeness of another model on every set, on each of which it is run once."""
        for each, judge in zip(self.sets, self._judges, strict=True):
            yield each, judge.against(model, track, f"measuring fidelity on {each.name}")

    def quality_of(self, model: Runs, track: Track = silent) -> Quality:
        """What is measured of a model on all sets. The first set's figures stand for its data; the worst set's
        fidelity is that of the model. Figures that are no finite numbers are left out, but for the fidelity."""
        rows = [_row(each, found) for each, found in self.against(model, track)]
        worst = min(rows, key=lambda row: row.order)
        first = rows[0]
        return Quality(
            kind=self.kind,
            fidelity=worst.fidelity,
            worst=worst.name,
            relative_error=first.relative_error,
            cosine=first.cosine,
            kl=first.kl,
            agreement=first.agreement,
            samples=float(first.samples),
            data=self.sets[0].about,
            sets=rows,
        )


def _row(each: JudgingSet, found: Likeness) -> SetQuality:
    figures = {name: value for name, value in found.figures.items() if math.isfinite(value)}
    facts = {"name": each.name, "origin": each.origin, "fidelity": found.fidelity, "samples": len(found.parts)}
    return SetQuality.from_json({**facts, **figures})
