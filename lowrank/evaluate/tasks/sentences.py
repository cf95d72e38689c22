"""`sts:FILE`: how well the similarity of embeddings agrees with what people said of pairs of sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank.backends.base import Backend
from lowrank.core.distance import Array, unit
from lowrank.core.ranking import spearman
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task
from lowrank.evaluate.tasks.inputs import Batches, Texts
from lowrank.evaluate.tasks.tables import read_columns

FEWEST = 3
"""Pairs that a correlation needs: two ranks always correlate."""


@dataclass(frozen=True)
class Similarity:
    """Spearman's rank correlation of the cosines of embeddings with what people said, as for STS-B."""

    name: str
    texts: Texts
    batches: Batches
    """Of all first sentences, then all second ones."""
    gold: Array
    metric: str = "spearman"
    higher_is_better: bool = True

    def score(self, model: Runs) -> Score:
        """A pair of numbers for each pair of sentences: the cosine, and the judgement."""
        first, second = np.split(unit(self.texts.vectors(model, self.batches)), 2)
        return Score(np.stack([(first * second).sum(1), self.gold], 1), spearman)


def read_sts(spec: str, rest: str, dense: Backend) -> Task:
    """From a table with the columns `sentence1`, `sentence2` and `score`.

    Raises:
        TaskError: if the table lacks one, a score is no number, or the model gives no embeddings.
        CalibrationError: if the file cannot be read.
    """
    path = Path(rest).expanduser()
    first, second, scores = read_columns(spec, path, [("sentence1",), ("sentence2",), ("score",)])
    if len(scores) < FEWEST:
        raise TaskError(f"--task {spec}: {path} has {len(scores)} pairs; give at least {FEWEST}, better some hundreds")
    gold = np.array([_number(spec, path, row, cell) for row, cell in enumerate(scores, 2)])
    if np.ptp(gold) == 0:
        raise TaskError(f"--task {spec}: every pair of {path} has the same score, so there is no order to find")
    texts = Texts.of(spec, dense, embeds=True)
    return Similarity(spec, texts, texts.batches([*first, *second]), gold)


def _number(spec: str, path: Path, row: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TaskError(f"--task {spec}: the score {cell[:40]!r} in row {row} of {path} is no number; repair that row")
    return value
