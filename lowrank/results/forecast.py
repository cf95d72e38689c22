"""Forecasts: the memory, disk and time that a run will take, and what budgets are predicted to lose."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowrank.results.json_part import Document, Part, rows_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate(Part):
    """What a run will take. Times are within a factor of two; forward passes, export and healing are not in them."""

    streamed: bool
    weights: int
    jobs: int
    """Weights at once."""
    memory: int
    """Bytes, at their highest."""
    memory_left: int
    """Bytes that may be taken."""
    disk: int
    """Bytes that are written."""
    directions: int
    """Bytes among those: of what the analysis keeps for the compression."""
    disk_free: int
    analyze_seconds: float
    compress_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction(Part):
    """A plan's keep ratio, and the relative error that is predicted of it."""

    keep: float
    error: float


@dataclass(frozen=True, kw_only=True)
class TradeOff(Document):
    """The plans of many budgets, by rising keep ratio. Its JSON is `tradeoff.json`."""

    file = "tradeoff.json"
    remedy = "delete it and select with --curve again"

    analysis: str
    """The fingerprint of the analysis that the budgets were solved from."""
    of_output: bool
    """Whether errors are those of the model's output; else of the weights."""
    points: list[Prediction] = field(metadata={"read": rows_of(Prediction)})
