"""Some tasks, and a dense model's scores on them that others are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lowrank.backends.base import Backend
from lowrank.errors import TaskError
from lowrank.evaluate.fidelity import Runs
from lowrank.evaluate.tasks.base import Score, Task, drop_of
from lowrank.evaluate.tasks.compare import Comparison, compare
from lowrank.progress import Track, silent


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


def _finite(task: Task, score: Score, which: str) -> Score:
    if not math.isfinite(score.value):
        raise TaskError(
            f"--task {task.name}: the {task.metric} of the {which} model is {score.value}, no finite number"
        )
    return score
