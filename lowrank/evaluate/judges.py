"""The fidelity of a model on several sets, of which the worst counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed, batch_size
from lowrank.calibrate.judging_set import JudgingSet
from lowrank.core.distance import OutputKind
from lowrank.evaluate.dense_outputs import Room
from lowrank.evaluate.fidelity import Judge, Runs
from lowrank.evaluate.likeness import Likeness, worst_of
from lowrank.progress import Track, silent
from lowrank.results.parts import Quality, SetQuality

UNCOUNTED = "none of its positions counts"


FEW = 20
"""Samples of the largest set, below which a note says that they are few."""


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
        some = [each for each in self._given if any(map(self._counts, each.feeds))]
        return some or self._given[:1]

    def _counts(self, feed: Feed) -> bool:
        """Whether some position of some output counts."""
        signature = signature_of(self.dense)
        counted = (signature.counted(feed, output) for output in signature.compared)
        return any(each is None or np.any(each) for each in counted)

    @property
    def notes(self) -> list[str]:
        """A sentence on the sets that are left out, if any are, and one where all others have few samples."""
        left_out = [f"{e.name} ({e.left_out or UNCOUNTED})" for e in self._given if e not in self.sets]
        most = max(sum(map(batch_size, each.feeds)) for each in self.sets)
        few = (
            f"judged on {most} samples, which are few to tell how the result does on others; give more of more kinds "
            "with --calib"
        )
        told = [f"not judged on {', '.join(left_out)}"] if left_out else []
        return [*told, few] if self.sets[0].origin == "own" and most < FEW else told

    @cached_property
    def _judges(self) -> list[Judge]:
        room = Room()
        return [Judge(self.dense, each.feeds, room) for each in self.sets]

    @property
    def kind(self) -> OutputKind:
        """What the output is that the model is about, by its shape, too; of those that are judged by the first."""
        kinds = self._judges[0].kinds
        return kinds.get(signature_of(self.dense).output, next(iter(kinds.values())))

    def against(self, model: Runs, track: Track = silent) -> Iterator[tuple[JudgingSet, list[Likeness]]]:
        """The likeness of each output of another model on every set, on each of which it is run once."""
        for each, judge in zip(self.sets, self._judges, strict=True):
            yield each, judge.against(model, track, f"measuring fidelity on {each.name}")

    def quality_of(self, model: Runs, track: Track = silent) -> Quality:
        """What is measured of a model on all sets. A set's fidelity is that of the worst output on it, and the model's
        that of the worst set; the first set's figures stand for the data. Figures that are no finite numbers are left
        out, but for the fidelity."""
        rows = [_row(each, found) for each, found in self.against(model, track)]
        worst = min(rows, key=lambda row: row.order)
        first = rows[0]
        return Quality(
            kind=worst.kind,
            output=worst.output,
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


def _row(each: JudgingSet, found: Sequence[Likeness]) -> SetQuality:
    worst, several = worst_of(found), len(found) > 1
    facts = {"name": each.name, "origin": each.origin, "samples": len(worst.parts), **_figures(worst)}
    outputs = [{"name": of.output, "kind": of.kind, **_figures(of)} for of in found]
    named = {"output": worst.output, "outputs": outputs} if several else {}
    return SetQuality.from_json({**facts, "kind": worst.kind, **named})


def _figures(found: Likeness) -> dict[str, float]:
    finite = {name: value for name, value in found.figures.items() if math.isfinite(value)}
    return {"fidelity": found.fidelity, **finite}
