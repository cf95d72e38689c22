"""Some tasks, and a dense model's scores on them that others are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lowrank.backends.base import Backend
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.judges import Judges
from lowrank.evaluate.tasks.base import Score, Task, drop_of
from lowrank.evaluate.tasks.specs import read_tasks
from lowrank.progress import Track, silent
from lowrank.results.parts import Comparison

RESAMPLES, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class Benchmark:
    """Tasks, the dense model, and its scores, which are computed once."""

    tasks: Sequence[Task]
    dense: Backend

    @cached_property
    def scores(self) -> list[Score]:
        """The dense model's scores.

        Raises:
            TaskError: if one is no number.
        """
        return [_finite(task, task.score(self.dense), "dense") for task in self.tasks]

    def compare(self, small: Runs, track: Track = silent) -> list[Comparison]:
        """What a compressed model lost on each task.

        Raises:
            TaskError: if a task cannot be measured.
        """
        rows = track(list(zip(self.tasks, self.scores, strict=True)), "measuring tasks", len(self.tasks))
        return [compare(task, dense, _finite(task, task.score(small), "compressed")) for task, dense in rows]

    def drop(self, small: Runs) -> float:
        """The largest drop of all tasks; infinite if one cannot be measured."""
        drops: list[float] = []
        for task, dense in zip(self.tasks, self.scores, strict=True):
            value = task.score(small).value
            drops.append(drop_of(task, dense.value, value) if math.isfinite(value) else math.inf)
        return max(drops)


def read_benchmark(specs: Sequence[str], dense: Backend, judges: Judges | None) -> Benchmark | None:
    """The tasks that some specs name; None if there are none.

    Args:
        specs: see `read_tasks`.
        dense: the model that others are compared with.
        judges: what `fidelity` without a file is measured by; by default on random inputs.

    Raises:
        TaskError: if a task cannot be read.
    """
    return Benchmark(read_tasks(specs, dense, judges), dense) if specs else None


def _finite(task: Task, score: Score, which: str) -> Score:
    if not math.isfinite(score.value):
        raise TaskError(
            f"--task {task.name}: the {task.metric} of the {which} model is {score.value}, no finite number"
        )
    return score


def compare(task: Task, dense: Score, small: Score, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """The drop with its percentile interval by the paired bootstrap: samples are drawn with replacement, the same ones
    for both models, since what is hard for one is hard for the other (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13; paired as in Koehn, Statistical Significance Tests for Machine Translation
    Evaluation, 2004).
    """
    drop = drop_of(task, dense.value, small.value)
    low = high = None
    count = dense.samples
    if count is not None and count > 1 and small.samples == count:
        rng = np.random.default_rng(seed)
        drops = np.array([_redrawn(task, dense, small, rng.integers(0, count, count)) for _ in range(resamples)])
        drops = drops[np.isfinite(drops)]
        if len(drops):
            edges = np.quantile(drops, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            low, high = float(edges[0]), float(edges[1])
    return Comparison(
        task=task.name,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        dense=dense.value,
        compressed=small.value,
        drop=drop,
        low=low,
        high=high,
        samples=count,
        resamples=resamples if low is not None else 0,
        confidence=CONFIDENCE,
    )


def _redrawn(task: Task, dense: Score, small: Score, rows: np.ndarray[Any, Any]) -> float:
    a, b = dense.statistic(dense.parts[rows]), small.statistic(small.parts[rows])
    return drop_of(task, a, b) if math.isfinite(a) and math.isfinite(b) else math.nan
