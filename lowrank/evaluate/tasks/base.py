"""A Task: a metric of a model on some data, with what each sample contributes to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from lowrank.core.distance import Array
from lowrank.errors import LowRankError, TaskError, first_line
from lowrank.evaluate.fidelity import Runs


def mean(parts: Array) -> float:
    """The mean of rows that hold one number."""
    return float(np.mean(parts, dtype=np.float64))


def share(parts: Array) -> float:
    """The sum of the first numbers of all rows over the sum of the second."""
    over, under = parts.sum(0, dtype=np.float64)
    return float(over / under) if under else 0.0


@dataclass(frozen=True)
class Score:
    """A metric's value, and what it was computed from, so that it can be computed of other samples, too.

    Example:
        >>> Score(np.array([1.0, 0.0, 1.0, 1.0])).value
        0.75
    """

    parts: Array
    """One row a sample, in the same order for every model: a number, or a few (pairs, for a correlation)."""
    statistic: Callable[[Array], float] = mean
    """From rows to the metric."""
    single: bool = False
    """Whether the only row is the value itself: nothing is known of its samples."""

    @classmethod
    def of_value(cls, value: float) -> Score:
        """A value that comes without samples, and so without an interval."""
        return cls(np.array([value]), single=True)

    @cached_property
    def value(self) -> float:
        """The metric over all samples."""
        return self.statistic(self.parts)

    @property
    def samples(self) -> int | None:
        """How many there were, where that is known."""
        return None if self.single else len(self.parts)


class Task(Protocol):
    """A metric on some data that is read already, for one dense model and whatever was made of it.

    What it takes to feed them (signature, tokenizer, kind of output) was taken from the dense model when the task was
    read: see `read_tasks`.
    """

    @property
    def name(self) -> str:
        """As it was asked for: `sts:pairs.tsv`."""
        ...

    @property
    def metric(self) -> str:
        """What the number is: `spearman`, `accuracy`, `perplexity`."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        ...

    def score(self, model: Runs) -> Score:
        """The metric of a model that takes the dense model's inputs: a Backend, or a file in ONNX Runtime.

        Raises:
            TaskError: if the model does not give what the metric needs.
        """
        ...


def drop_of(task: Task, dense: float, small: float) -> float:
    """What was lost, positive for worse: the difference of a metric that should be high, and the relative increase of
    one that should be low.

    A drop of 0.01 is thus a point of accuracy or of correlation, or one percent of perplexity.
    """
    return dense - small if task.higher_is_better else (small - dense) / dense if dense else small


@contextmanager
def harness_errors(spec: str, package: str, instead: str) -> Iterator[None]:
    """Errors of a benchmark's own package become ours, and what it prints goes to stderr, since stdout is for results.

    Args:
        spec: the task.
        package: its name.
        instead: which tasks need no network.

    Raises:
        TaskError: for any error that is not ours.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except LowRankError:
        raise
    except Exception as error:
        raise TaskError(
            f"--task {spec}: {package} failed with {type(error).__name__}: {first_line(error)}; it fetches the data of "
            f"its tasks, for which it needs the network; {instead}"
        ) from None
