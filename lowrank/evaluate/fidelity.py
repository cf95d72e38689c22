"""Fidelity: how often a user of the compressed model gets the dense model's answer, on data that neither ranks nor
factors were chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lowrank.backends.base import Backend, signature_of
from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.sets import JudgingSet
from lowrank.core.distance import (
    Array,
    OutputKind,
    Reference,
    cosines,
    divergence_terms,
    kind_of,
    log_probabilities,
    owners_of,
    rows_of,
    sound_rows,
    squared_norm,
)
from lowrank.core.ranking import rankings, similarity_spearman
from lowrank.progress import Track, silent
from lowrank.results.parts import Quality, SetQuality

REMEMBERED = 1 << 30
"""Bytes of scores that are kept of the dense model, at most, of all sets; batches beyond that are run again."""
RANDOM = "random inputs"
"""The name of the set of a model that comes without data."""
FEWEST = 3
"""Samples below which there is no ranking: of two, each is the other's nearest."""


class Runs(Protocol):
    """Anything that gives the main output of a model."""

    def run(self, feed: Feed) -> Array:
        """One forward pass."""
        ...


@dataclass(frozen=True)
class Likeness:
    """How like the dense model's outputs another model's are."""

    parts: Array
    """For each sample what is alike, and the most that there could be."""
    figures: Mapping[str, float]
    """The measures that fit the kind of output, by name."""

    @property
    def fidelity(self) -> float:
        """From 0 to 1; not a number where an output is not finite."""
        return alike(self.parts)


def alike(parts: Array) -> float:
    """The sum of the first numbers of all rows over the sum of the second, and at least 0."""
    same, most = parts.sum(0, dtype=np.float64)
    share = float(same / most) if most else 1.0
    return share if math.isnan(share) else max(share, 0.0)


class Judge:
    """The dense model's outputs on some batches, which are computed once, and the likeness of others to them.

    The figures, by what the output is:

    - logits: `agreement` of the first choice at the positions that count, and `kl`, the mean divergence of the dense
      distribution to the other one, in nats;
    - embeddings: `ranking`, the mean nDCG@10 of each sample's nearest others (see `core.ranking`), `spearman` of all
      similarities, and the mean `cosine` of the two vectors of a sample;
    - values: `explained`, the share of the dense output's variance after its constant part (see `Reference`);
    - all: `relative_error`, `|y - y'| / |y|` of what is compared.

    Args:
        dense: the model.
        feeds: the batches.
        remembered: bytes of scores that are kept, at most.
    """

    def __init__(self, dense: Backend, feeds: Sequence[Feed], remembered: int = REMEMBERED) -> None:
        self.dense, self.feeds, self.remembered = dense, list(feeds), remembered
        signature = signature_of(dense)
        self.counted = [signature.counted(feed) for feed in self.feeds]
        self._scores: dict[int, Array] = {}
        self._first = dense.run(self.feeds[0])

    @cached_property
    def kind(self) -> OutputKind:
        """What the output is, by its shape, too."""
        return kind_of([self._first], self.dense.output_kind)

    @cached_property
    def _outputs(self) -> list[Array]:
        """The vectors, or the numbers."""
        return [self._reduced(i, self._run(i)) for i in range(len(self.feeds))]

    @cached_property
    def _reference(self) -> Reference:
        """Of values."""
        return Reference(self._outputs, self.kind, self.counted)

    def against(self, model: Runs, track: Track = silent, doing: str = "measuring fidelity") -> Likeness:
        """The likeness of another model, which is run once on every batch."""
        numbers = track(range(len(self.feeds)), doing, len(self.feeds))
        if self.kind == "logits":
            return self._of_scores(model, numbers)
        if self.kind == "values":
            return self._of_values(model, numbers)
        return self._of_vectors([self._reduced(i, model.run(self.feeds[i])) for i in numbers])

    def _run(self, i: int) -> Array:
        return self._first if i == 0 else self.dense.run(self.feeds[i])

    def _reduced(self, i: int, output: Array) -> Array:
        """What is kept of an output: of tokens that are pooled the vector of each sample."""
        return rows_of(output, "embedding", self.counted[i]) if self.kind == "embedding" else output

    def _rows(self, i: int) -> Array:
        if i in self._scores:
            return self._scores[i]
        rows = rows_of(self._run(i), "logits", self.counted[i])
        if sum(kept.nbytes for kept in self._scores.values()) + rows.nbytes <= self.remembered:
            self._scores[i] = rows
        return rows

    def _of_scores(self, model: Runs, numbers: Any) -> Likeness:
        parts: list[Array] = []
        divergence = difference = total = 0.0
        for i in numbers:
            output = model.run(self.feeds[i])
            a, b = self._rows(i), rows_of(output, "logits", self.counted[i])
            # Where the dense model itself gives NaN there is nothing to compare with.
            sound, owners = sound_rows(a, "logits"), owners_of(output, "logits", self.counted[i])
            a, b, owners = a[sound], b[sound], owners[sound]
            same = np.where(np.isnan(b).any(-1), np.nan, a.argmax(-1) == b.argmax(-1))
            divergence += float(
                divergence_terms(log_probabilities(a), log_probabilities(b)).sum(-1).sum(dtype=np.float64)
            )
            # Minus infinity is a probability of zero in both.
            difference += squared_norm(np.where(a == b, 0, a - b))
            total += squared_norm(np.where(np.isfinite(a), a, 0))
            parts.append(_by_sample(owners, len(output), same, np.ones(len(same))))
        found = np.concatenate(parts)
        count = max(float(found[:, 1].sum()), 1.0)
        return Likeness(found, {"agreement": alike(found), "kl": divergence / count, **_relative(difference, total)})

    def _of_vectors(self, outputs: Sequence[Array]) -> Likeness:
        a, b = np.concatenate(self._outputs), np.concatenate(outputs)
        sound = np.isfinite(a).all(-1)
        a, b = a[sound], b[sound]
        cosine = cosines(a, b)
        if not np.isfinite(b).all():
            same = np.full(len(a), np.nan)
        else:
            same = rankings(a, b) if len(a) >= FEWEST else np.maximum(cosine, 0)
        figures = {"cosine": float(cosine.mean()), **_relative(squared_norm(a - b), squared_norm(a))}
        if len(a) >= FEWEST:
            figures = {"ranking": float(same.mean()), "spearman": similarity_spearman(a, b), **figures}
        return Likeness(np.stack([same, np.ones(len(a))], 1), figures)

    def _of_values(self, model: Runs, numbers: Any) -> Likeness:
        reference = self._reference
        parts: list[Array] = []
        difference = total = 0.0
        for i in numbers:
            output = model.run(self.feeds[i])
            lost, owners = reference.distances(i, output), reference.owners(i, output)
            spread = np.full(len(lost), reference.spread)
            parts.append(_by_sample(owners, len(output), spread - lost, spread))
            difference += float(lost.sum())
            dense = rows_of(self._outputs[i], "values", self.counted[i])
            total += squared_norm(np.where(np.isfinite(dense).all(-1, keepdims=True), dense, 0))
        found = np.concatenate(parts)
        return Likeness(found, {"explained": alike(found), **_relative(difference, total)})


def _by_sample(owners: Array, samples: int, same: Array, most: Array) -> Array:
    """The sums over the rows of each sample."""
    return np.stack([np.bincount(owners, weights=each, minlength=samples) for each in (same, most)], 1)


def _relative(difference: float, total: float) -> dict[str, float]:
    return {"relative_error": (difference / total) ** 0.5 if total else 0.0}


class Judges:
    """One judge for each set that a dense model is compared on; a set in which no position counts is left out, if it
    is not the only one."""

    def __init__(self, dense: Backend, sets: Sequence[JudgingSet]) -> None:
        counted = signature_of(dense).counted
        some = [each for each in sets if any(c is None or np.any(c) for c in map(counted, each.feeds))]
        self.sets = some or list(sets[:1])
        self._judges = [Judge(dense, each.feeds, REMEMBERED // len(self.sets)) for each in self.sets]

    @property
    def kind(self) -> OutputKind:
        """What the output is, by its shape, too."""
        return self._judges[0].kind

    def quality_of(self, model: Runs, track: Track = silent) -> Quality:
        """What is measured of a model on all sets. The first set's figures stand for its data; the worst set's
        fidelity is that of the model. Figures that are no finite numbers are left out, but for the fidelity."""
        rows: list[SetQuality] = []
        for each, judge in zip(self.sets, self._judges, strict=True):
            found = judge.against(model, track, f"measuring fidelity on {each.name}")
            figures = {name: value for name, value in found.figures.items() if math.isfinite(value)}
            rows.append(
                SetQuality.from_json(
                    {"name": each.name, "fidelity": found.fidelity, "samples": len(found.parts), **figures}
                )
            )
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


def own_set(dense: Backend, calibration: Calibration | None) -> JudgingSet:
    """The report fold of the data; random inputs where there are none."""
    if calibration is None:
        return JudgingSet(RANDOM, tuple(random_feeds(dense)), RANDOM)
    return JudgingSet(calibration.own_name, calibration.report, calibration.report_label)


def random_feeds(dense: Backend) -> list[Feed]:
    """Some random batches for a model that comes without data."""
    signature = signature_of(dense)
    return [signature.example(4, min(16, signature.max_sequence), seed) for seed in range(4)]
