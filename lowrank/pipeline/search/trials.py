"""Trials of a search: what was tried, what it came to, and what it may come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lowrank.errors import ArtifactError

Goal = Literal["bytes", "ms", "drop"]
LEAST_DROP = 1e-3
"""What a miss is a share of, where no drop or less is allowed."""
GOALS: dict[Goal, str] = {"bytes": "the smallest model.onnx", "ms": "the shortest time", "drop": "the smallest drop"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
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
        found = [(drop - self.drop) / max(abs(self.drop), LEAST_DROP)]
        found += [] if self.bytes is None else [nbytes / self.bytes - 1]
        return found + ([] if self.ms is None else [ms / self.ms - 1])

    def told(self) -> str:
        """In words."""
        parts = [f"a drop of at most {self.drop:g}"]
        parts += [] if self.bytes is None else [f"at most {int(self.bytes):,} bytes"]
        return ", ".join(parts + ([] if self.ms is None else [f"at most {self.ms:.2f} ms"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The keys of a trial in `tune.json`."""

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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trial:
        """What `to_json` gave.

        Raises:
            ArtifactError: if it is anything else.
        """
        try:
            return cls(**{each.name: content[each.name] for each in fields(cls)})
        except (KeyError, TypeError):
            raise ArtifactError("the study holds a trial that is not whole; search again without --resume") from None

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return asdict(self)

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


def best_of(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """Of those that keep all limits the one nearest the goal, the earliest of equal ones; None if none does."""
    meeting = [trial for trial in trials if trial.excess(limits) == 0.0]
    return min(meeting, key=lambda trial: getattr(trial, limits.goal), default=None)


def nearest_of(trials: Sequence[Trial], limits: Limits) -> Trial | None:
    """The one that passes the limits by least; None if nothing was measured."""
    measured = [trial for trial in trials if trial.problem is None]
    return min(measured, key=lambda trial: trial.excess(limits), default=None)
