"""`fidelity`: how alike the outputs are to the dense model's. Needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import MASK, Feed
from lowrank.core.distance import Array, cosines, pooled
from lowrank.evaluate.fidelity import Runs, random_feeds
from lowrank.evaluate.tasks.base import Score, Task, share


@dataclass(frozen=True)
class Fidelity:
    """For logits, the share of tokens or samples whose most likely class is the dense model's (`agreement`); for hidden
    states the cosine of mean-pooled vectors, averaged over the samples. The dense model has 1."""

    name: str
    dense: Backend
    feeds: Sequence[Feed]
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """What is averaged: `agreement` of logits, `cosine` of hidden states."""
        return "agreement" if self._gives_logits else "cosine"

    @property
    def _gives_logits(self) -> bool:
        return self.dense.output_kind == "logits"

    @cached_property
    def _references(self) -> list[Array]:
        return [self._compared(self.dense.run(feed), feed) for feed in self.feeds]

    def _compared(self, output: Array, feed: Feed) -> Array:
        """What is compared of an output, a row a sample: the most likely classes, or the pooled vector."""
        values = output.argmax(-1) if self._gives_logits else pooled(output, feed.get(MASK))
        return values.reshape(len(output), -1)

    def score(self, model: Runs) -> Score:
        """Against the dense model's outputs, which are computed once."""
        rows: list[Array] = []
        for feed, dense in zip(self.feeds, self._references, strict=True):
            ours = dense if model is self.dense else self._compared(model.run(feed), feed)
            if self._gives_logits:
                rows.append(_agreements(dense, ours, feed.get(MASK)))
            else:
                rows.append(np.stack([cosines(dense, ours), np.ones(len(dense))], 1))
        return Score(np.concatenate(rows), share)


def _agreements(a: Array, b: Array, mask: Array | None) -> Array:
    """Of each sample: how many choices are the same, and how many there are."""
    counts = mask != 0 if mask is not None and mask.shape == a.shape else np.ones(a.shape, bool)
    return np.stack([((a == b) & counts).sum(1), counts.sum(1)], 1)


def read_fidelity(spec: str, rest: str, dense: Backend, feeds: Sequence[Feed] | None) -> Task:
    """On given batches, on other text, or on random inputs.

    Raises:
        CalibrationError: if the text cannot be read.
    """
    if rest:
        from lowrank.calibrate.data import load_calibration

        calibration = load_calibration(dense, Path(rest).expanduser())
        assert calibration is not None
        return Fidelity(spec, calibration.backend, (*calibration.fit, *calibration.heldout, *calibration.report))
    return Fidelity(spec, dense, feeds or random_feeds(dense))
