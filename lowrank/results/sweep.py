"""Sweep: the models of many budgets, as measured side by side. Its JSON is `sweep.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lowrank.core.selection.pareto import Result
from lowrank.edge.target import Dtype
from lowrank.results.json_part import Document, Part, rows_of

MethodName = Literal["dense", "pruned", "student", "lowrank", "healed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point(Part):
    """One model of a sweep, and what was measured of its file."""

    name: str
    method: MethodName
    keep: float | None
    dtype: Dtype
    minutes: float | None
    """Of training; None if it was not trained."""
    params: int
    """Numbers in the model, zeros among them."""
    zeros: int | None
    """Of the pruned weights."""
    bytes: int
    """Of model.onnx with what lies beside it."""
    gzip_bytes: int | None
    """Of the same, compressed; where zeros make a difference, and of the dense model."""
    ms: float
    """A run in ONNX Runtime, all points in turn."""
    quality: float
    drop: float
    """Of the quality, positive for worse; see `evaluate.tasks.drop_of`."""
    low: float | None
    high: float | None
    """The drop's confidence interval."""
    on_front: bool = False
    """Whether no other point is as good in bytes, ms and drop, and better in one; see `core.selection.pareto`."""
    note: str | None = None

    @property
    def result(self) -> Result:
        """What decides whether it is on the front."""
        return Result(self.bytes, self.ms, self.drop)


@dataclass(frozen=True, kw_only=True)
class Sweep(Document):
    """All points of a sweep, and what they mean."""

    file = "sweep.json"
    remedy = "delete it and sweep again"

    task: dict[str, Any]
    """`name`, `metric` and `higher_is_better` of the quality."""
    shape: str
    """Of the input that is timed, with one thread."""
    points: list[Point] = field(metadata={"read": rows_of(Point)})
    """The dense model first."""
    left_out: list[dict[str, str]]
    """`name` and `reason` of each point that could not be made."""
    advice: list[str]
    """What it means, in words."""
    seconds: dict[str, float]
    identity: dict[str, Any]
    """All that the points depend on."""
    provenance: dict[str, Any]
