"""One output of the dense model on some batches, and how another model's is measured against it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np

from lowrank.backends.outputs import Output
from lowrank.core.distance import (
    AS_THEY_ARE,
    Array,
    OutputKind,
    Reference,
    cosines,
    divergence_terms,
    log_probabilities,
    owners_of,
    rows_of,
    sound_rows,
    squared_norm,
)
from lowrank.core.ranking import rankings, similarity_spearman
from lowrank.evaluate.dense_outputs import DenseOutputs
from lowrank.evaluate.likeness import Likeness, alike

FEWEST = 3
"""Samples below which there is no ranking: of two, each is the other's nearest."""


class OneOutput:
    """The measure of one output; `begun` gives one to which another model's outputs are added batch by batch.

    Args:
        output: its name, and what it is, by its shape, too.
        counted: of each batch which positions count.
        dense: the dense model's outputs.
    """

    def __init__(self, output: Output, counted: Sequence[Array | None], dense: DenseOutputs) -> None:
        self.name, self.over_positions = output.name, output.over_positions
        self.kind: OutputKind = output.kind
        self._counted, self._dense = counted, dense.named(output.name)
        self._parts: list[Array] = []
        self._sums: dict[str, float] = dict.fromkeys(("divergence", "difference", "total"), 0.0)

    def begun(self) -> Self:
        """The same, for another model."""
        fresh = copy.copy(self)
        if self.kind in AS_THEY_ARE:
            fresh._reference = self._reference
        fresh._parts, fresh._sums = [], dict.fromkeys(self._sums, 0.0)
        return fresh

    @cached_property
    def _reference(self) -> Reference:
        """Of values and choices."""
        return Reference(self._dense, self.kind, self._counted, self.over_positions)

    def compared(self, i: int, output: Array) -> Array:
        """What is compared of an output: the scores that count, the vector of each sample, or all numbers."""
        output = np.atleast_1d(output)
        if self.kind in AS_THEY_ARE:
            return output
        return rows_of(output, self.kind, self._counted[i], self.over_positions)

    def add(self, i: int, output: Array) -> None:
        """Measure the other model's output of a batch."""
        output = np.atleast_1d(output)
        if self.kind == "logits":
            self._add_scores(i, output)
        elif self.kind in AS_THEY_ARE:
            lost, owners = self._reference.distances(i, output), self._reference.owners(i, output)
            spread = np.full(len(lost), self._reference.spread)
            self._parts.append(_by_sample(owners, len(output), spread - lost, spread))
            self._sums["difference"] += float(lost.sum())
        else:
            self._parts.append(self.compared(i, output))

    def _add_scores(self, i: int, output: Array) -> None:
        a, b = self._dense[i], self.compared(i, output)
        # Where the dense model itself gives NaN there is nothing to compare with.
        sound, owners = sound_rows(a, "logits"), owners_of(output, "logits", self._counted[i])
        a, b, owners = a[sound], b[sound], owners[sound]
        same = np.where(np.isnan(b).any(-1), np.nan, a.argmax(-1) == b.argmax(-1))
        terms = divergence_terms(log_probabilities(a), log_probabilities(b))
        self._sums["divergence"] += float(terms.sum(-1).sum(dtype=np.float64))
        # Minus infinity is a probability of zero in both.
        with np.errstate(invalid="ignore"):
            self._sums["difference"] += squared_norm(np.where(a == b, 0, a - b))
        self._sums["total"] += squared_norm(np.where(np.isfinite(a), a, 0))
        self._parts.append(_by_sample(owners, len(output), same, np.ones(len(same))))

    def likeness(self) -> Likeness:
        """What was measured of all batches."""
        found, sums = np.concatenate(self._parts), self._sums
        if self.kind == "embedding":
            return self._of_vectors(found)
        if self.kind == "choices":
            figures = {"agreement": alike(found)}
        elif self.kind == "values":
            figures = {"explained": alike(found), **_relative(sums["difference"], self._reference.squares)}
        else:
            count = max(float(found[:, 1].sum()), 1.0)
            # Of what is nearly the same, rounding may leave less than nothing.
            figures = {"agreement": alike(found), "kl": max(sums["divergence"] / count, 0.0)}
            figures |= _relative(sums["difference"], sums["total"])
        return Likeness(self.name, self.kind, found, figures)

    def _of_vectors(self, b: Array) -> Likeness:
        a = np.concatenate(list(self._dense))
        sound = np.isfinite(a).all(-1)
        parts, a, b = np.zeros((len(a), 2)), a[sound], b[sound]
        cosine = cosines(a, b)
        if not np.isfinite(b).all():
            same = np.full(len(a), np.nan)
        else:
            same = rankings(a, b) if len(a) >= FEWEST else np.maximum(cosine, 0)
        figures = {"cosine": float(cosine.mean()), **_relative(squared_norm(a - b), squared_norm(a))}
        if len(a) >= FEWEST:
            figures = {"ranking": float(same.mean()), "spearman": similarity_spearman(a, b), **figures}
        parts[sound] = np.stack([same, np.ones(len(a))], 1)
        return Likeness(self.name, self.kind, parts, figures)


def _by_sample(owners: Array, samples: int, same: Array, most: Array) -> Array:
    """The sums over the rows of each sample."""
    return np.stack([np.bincount(owners, weights=each, minlength=samples) for each in (same, most)], 1)


def _relative(difference: float, total: float) -> dict[str, float]:
    return {"relative_error": (difference / total) ** 0.5 if total else 0.0}
