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
from lowrank.evaluate.dense_outputs import DenseOutputs, Room
from lowrank.progress import Track, silent

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
        room: for what is kept of its outputs.
    """

    def __init__(self, dense: Backend, feeds: Sequence[Feed], room: Room | None = None) -> None:
        self.dense, self.feeds = dense, list(feeds)
        signature = signature_of(dense)
        self.counted = [signature.counted(feed) for feed in self.feeds]
        self._outputs = DenseOutputs(dense, self.feeds, self._compared, room or Room())

    @cached_property
    def kind(self) -> OutputKind:
        """What the output is, by its shape, too."""
        known = self.dense.output_kind
        if known != "logits":
            return known
        # A single sample shows it.
        return kind_of([self.dense.run({name: values[:1] for name, values in self.feeds[0].items()})], known)

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
        return self._of_vectors([self._compared(i, model.run(self.feeds[i])) for i in numbers])

    def _compared(self, i: int, output: Array) -> Array:
        """What is compared of an output: the scores that count, the vector of each sample, or all numbers."""
        return output if self.kind == "values" else rows_of(output, self.kind, self.counted[i])

    def _of_scores(self, model: Runs, numbers: Any) -> Likeness:
        parts: list[Array] = []
        divergence = difference = total = 0.0
        for i in numbers:
            output = model.run(self.feeds[i])
            a, b = self._outputs[i], self._compared(i, output)
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
        a, b = np.concatenate(list(self._outputs)), np.concatenate(outputs)
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
        difference = 0.0
        for i in numbers:
            output = model.run(self.feeds[i])
            lost, owners = reference.distances(i, output), reference.owners(i, output)
            spread = np.full(len(lost), reference.spread)
            parts.append(_by_sample(owners, len(output), spread - lost, spread))
            difference += float(lost.sum())
        found = np.concatenate(parts)
        return Likeness(found, {"explained": alike(found), **_relative(difference, reference.squares)})


def _by_sample(owners: Array, samples: int, same: Array, most: Array) -> Array:
    """The sums over the rows of each sample."""
    return np.stack([np.bincount(owners, weights=each, minlength=samples) for each in (same, most)], 1)


def _relative(difference: float, total: float) -> dict[str, float]:
    return {"relative_error": (difference / total) ** 0.5 if total else 0.0}
