"""`fidelity`: how alike the outputs are to the dense model's. Needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.backends.inputs import MASK, Feed, Signature
from lowrank.evaluate.fidelity import Array, Runs, cosines, pooled
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
        """By what the output is."""
        return "agreement" if self._logits else "cosine"

    @property
    def _logits(self) -> bool:
        return isinstance(self.dense.signature, Signature) and self.dense.signature.output_kind == "logits"

    @cached_property
    def _known(self) -> list[Array]:
        return [self._looked_at(self.dense.run(feed), feed) for feed in self.feeds]

    def _looked_at(self, output: Array, feed: Feed) -> Array:
        if self._logits:
            return output.argmax(-1).reshape(len(output), -1)
        return pooled(output, feed.get(MASK)).reshape(len(output), -1)

    def score(self, model: Runs) -> Score:
        """Against the dense model's outputs, which are computed once."""
        rows: list[Array] = []
        for feed, known in zip(self.feeds, self._known, strict=True):
            ours = known if model is self.dense else self._looked_at(model.run(feed), feed)
            rows.append(
                _agreed(known, ours, feed) if self._logits else np.stack([cosines(known, ours), np.ones(len(known))], 1)
            )
        return Score(np.concatenate(rows), share)


def _agreed(a: Array, b: Array, feed: Feed) -> Array:
    """Of each sample: how many choices are the same, and how many there are."""
    mask = feed.get(MASK)
    counts = mask != 0 if mask is not None and mask.shape == a.shape else np.ones(a.shape, bool)
    return np.stack([((a == b) & counts).sum(1), counts.sum(1)], 1)


def read_fidelity(spec: str, rest: str, dense: Backend, feeds: Sequence[Feed] | None) -> Task:
    """On given batches, on other text, or on random inputs.

    Raises:
        CalibrationError: if the text cannot be read.
    """
    signature = dense.signature
    assert isinstance(signature, Signature)
    if rest:
        from lowrank.calibrate.data import load_calibration

        found = load_calibration(dense, Path(rest).expanduser())
        assert found is not None
        return Fidelity(spec, found.backend, (*found.fit, *found.heldout, *found.report))
    random = [signature.example(4, min(16, signature.max_sequence), seed) for seed in range(4)]
    return Fidelity(spec, dense, feeds or random)
