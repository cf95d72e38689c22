"""`fidelity`: how often the model gives the dense model's answer. Needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed
from lowrank.evaluate.fidelity import Judge, Runs, alike, random_feeds
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.results.parts import FIDELITY


@dataclass(frozen=True)
class Fidelity:
    """By what the output is: agreement of the first choice, ranking of the nearest others, or explained variance; see
    `evaluate.fidelity`. The dense model has 1."""

    name: str
    dense: Backend
    feeds: Sequence[Feed]
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        """`agreement` of logits, `ranking` of embeddings, `explained` of values."""
        return FIDELITY[self._judge.kind]

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.dense, self.feeds)

    def score(self, model: Runs) -> Score:
        """Against the dense model's outputs, which are computed once."""
        return Score(self._judge.against(model).parts, alike)


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
