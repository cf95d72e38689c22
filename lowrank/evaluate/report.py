"""Report: what a compression came to, as measured. Its JSON is `report.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ONNX_FILE = "model.onnx"
"""The exported model's name in a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The keys of `report.json`, in order; a part that could not be measured is None, and `notes` say why."""

    targets: dict[str, Any]
    """`params_before`, `params_after`, `keep_ratio` of the targeted weights."""
    model: dict[str, Any]
    """`params`, `bytes` and `macs` (multiply-adds a token in linear layers), each `_before` and `_after`."""
    budget: dict[str, Any]
    """`kind`, `limit`, `reached`."""
    error: dict[str, Any]
    """`relative` of the model's output, and `per_weight` as predicted on the held-out fold."""
    parity: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was asked for and could not be done; the command line exits with 1 if there is any."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each file written."""
    seconds: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return asdict(self)
