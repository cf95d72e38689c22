"""Two scores on the same samples: what was lost, with a confidence interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank.evaluate.tasks.base import Score, Task, drop_of
from lowrank.results.parts import Comparison

RESAMPLES, CONFIDENCE = 1000, 0.95


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
