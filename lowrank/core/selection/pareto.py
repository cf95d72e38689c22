"""Pareto fronts: of results with a size, a time and a loss, those that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TIE = 0.02
"""Times that differ by less than this share are alike: it is what the same file measured twice differs by."""


@dataclass(frozen=True, slots=True)
class Result:
    """What decides between two models; less of each is better."""

    bytes: int
    ms: float
    drop: float


def dominates(a: Result, b: Result) -> bool:
    """Whether a result is as good as another in every respect, and better in one.

    No two dominate each other, and no chain of them closes: where sizes and losses are equal, only a time that is
    clearly shorter counts.

    Example:
        >>> dominates(Result(9, 5.05, 0.1), Result(20, 5.0, 0.1)), dominates(Result(9, 5.0, 0.1), Result(9, 5.05, 0.1))
        (True, False)
    """
    if a.bytes > b.bytes or a.drop > b.drop or a.ms > b.ms * (1 + TIE):
        return False
    return a.bytes < b.bytes or a.drop < b.drop or a.ms * (1 + TIE) < b.ms


def on_front(results: Sequence[Result]) -> list[bool]:
    """Which results no other one dominates.

    Example:
        >>> on_front([Result(10, 5.0, 0.0), Result(5, 5.0, 0.1), Result(6, 6.0, 0.2)])
        [True, True, False]
    """
    return [not any(dominates(other, each) for other in results) for each in results]
