"""Tuning: what a search tried within its limits. Its JSON is `tune.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lowrank.results.json_part import Document, Part, rows_of

Goal = Literal["bytes", "ms", "drop"]
LEAST_DROP = 1e-3
"""What a miss is a share of, where no drop or less is allowed."""
GOALS: dict[Goal, str] = {"bytes": "the smallest model.onnx", "ms": "the shortest time", "drop": "the smallest drop"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(Part):
    """What a result may come to."""

    drop: float
    bytes: float | None = None
    ms: float | None = None

    @property
    def goal(self) -> Goal:
        """What is made as small as it can be within them: what has no limit of its own, bytes before time; the drop
        where all have one."""
        if self.bytes is None:
            return "bytes"
        return "ms" if self.ms is None else "drop"

    def excess(self, drop: float, nbytes: float, ms: float) -> list[float]:
        """By what share each limit is passed: at most 0 where it is kept. Only those that there are."""
        shares = [(drop - self.drop) / max(abs(self.drop), LEAST_DROP)]
        shares += [] if self.bytes is None else [nbytes / self.bytes - 1]
        return shares + ([] if self.ms is None else [ms / self.ms - 1])

    @property
    def words(self) -> str:
        """In words."""
        parts = [f"a drop of at most {self.drop:g}"]
        parts += [] if self.bytes is None else [f"at most {int(self.bytes):,} bytes"]
        return ", ".join(parts + ([] if self.ms is None else [f"at most {self.ms:.2f} ms"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial(Part):
    """One setting that a search tried, and what its file came to."""

    number: int
    keep: float
    """1 leaves the model as it is."""
    structures: str
    """That were offered, with commas; `all`."""
    dtype: str
    minutes: float
    """Of healing."""
    bytes: int | None = None
    ms: float | None = None
    quality: float | None = None
    drop: float | None = None
    low: float | None = None
    high: float | None = None
    """The drop's confidence interval."""
    problem: str | None = None
    """Why nothing was measured."""

    def excess(self, limits: Limits) -> float:
        """By how much limits are passed, all together; 0 where they are kept, infinite where nothing is known."""
        if self.drop is None or self.bytes is None or self.ms is None:
            return float("inf")
        return sum(max(each, 0.0) for each in limits.excess(self.drop, self.bytes, self.ms))

    def verdict(self, limits: Limits) -> str:
        """In words."""
        if self.problem is not None:
            return self.problem
        assert self.drop is not None and self.bytes is not None and self.ms is not None
        names = ["loses too much", "too large" if limits.bytes is not None else "too slow", "too slow"]
        passed = limits.excess(self.drop, self.bytes, self.ms)
        return ", ".join(name for name, each in zip(names, passed, strict=False) if each > 0) or "meets all"

    def flags(self) -> str:
        """The options of `compress` that make it."""
        parts = [f"--budget {self.keep:g}"]
        parts += [] if self.dtype == "float32" else [f"--quantize {self.dtype}"]
        parts += [] if self.structures == "all" else [f"--structures {self.structures}"]
        return " ".join(parts + ([f"--heal {self.minutes:g}"] if self.minutes else []))


@dataclass(frozen=True, kw_only=True)
class Tuning(Document):
    """All trials of a search, and the best of them."""

    file = "tune.json"
    remedy = "delete it and search again"

    task: dict[str, Any]
    limits: Limits = field(metadata={"read": Limits.from_json})
    goal: str
    """In words."""
    dense: dict[str, float]
    """`bytes`, `ms` and `quality` of the dense model."""
    trials: list[Trial] = field(metadata={"read": rows_of(Trial)})
    best: Trial | None = field(metadata={"read": Trial.from_json})
    """What the run holds now; None if no trial is within the limits."""
    nearest: Trial | None = field(metadata={"read": Trial.from_json})
    """Without a best one: which passes the limits by least."""
    exhausted: bool
    """Whether nothing is left to try."""
    provenance: dict[str, Any]


def best_of(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """Of those that keep all limits the one nearest the goal, the earliest of equal ones; None if none does."""
    meeting = [trial for trial in trials if trial.excess(limits) == 0.0]
    return min(meeting, key=lambda trial: getattr(trial, limits.goal), default=None)


def nearest_of(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """The one that passes the limits by least; None if nothing was measured."""
    measured = [trial for trial in trials if trial.problem is None]
    return min(measured, key=lambda trial: trial.excess(limits), default=None)
