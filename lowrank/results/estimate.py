"""Estimate: the memory, disk and time that a run will take, before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank.results.part import Part


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
    disk_free: int
    analyze_seconds: float
    compress_seconds: float
