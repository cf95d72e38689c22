"""Report: what a compression came to, as measured. Its JSON is `report.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lowrank.errors import ArtifactError

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
    onnx: dict[str, Any] | None = None
    """`profile`, and how many attention blocks, norms and gelus run as one operator: `fused`, and `dense_fused`."""
    parity: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    healing: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each time that the model was healed: `before` and `after` (held-out loss), `kept`, `steps`, ..."""
    cut: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each time that a finished result was cut again: of which `run`, from what `keep_before` to what
    `keep_after`, and how near the outputs are to those that it had: `quality`."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was asked for and could not be done; the command line exits with 1 if there is any."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each file written."""
    seconds: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        """What `to_json` gave.

        Raises:
            ArtifactError: if parts are missing.
        """
        try:
            return cls(**{each.name: content[each.name] for each in fields(cls) if each.name in content})
        except TypeError as error:
            raise ArtifactError(f"the report is not whole ({error}); run `lowrank evaluate` to make it again") from None

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return asdict(self)


def held_against(report: Report, max_drop: float) -> Report:
    """The report of a model that may lose so much on its tasks; a problem in it, if it lost more."""
    rows = (report.quality or {}).get("tasks", [])
    worst = max(rows, key=lambda row: row["drop"], default=None)
    budget = {"kind": "drop", "limit": max_drop, "reached": worst["drop"] if worst else None}
    if worst is None or worst["drop"] <= max_drop:
        return replace(report, budget=budget)
    return replace(
        report,
        budget=budget,
        problems=[
            *report.problems,
            f"{worst['task']} drops by {worst['drop']:.4g} as measured on what was written, and {max_drop:g} was "
            "allowed; allow more, give calibration text like that of the task with --calib, or heal longer",
        ],
    )
