"""The files of a run folder, by name, and which of them belong to one compressed model."""

from __future__ import annotations

from pathlib import Path

from lowrank.results.report import INT8_FILE, ONNX_FILE, Report

PAGE_FILE, PLAN_FILE, REPORT_FILE = "report.html", "plan.json", Report.file
RUN = "lowrank-run"
MODEL_FOLDER = "model"
WITH_PAST_FILE = "model_with_past.onnx"
GRAPHS = tuple(f"{name}{end}" for name in (ONNX_FILE, INT8_FILE, WITH_PAST_FILE) for end in ("", ".data"))
ADAPTER_FOLDER, ADAPTER_FILE, ADAPTABLE_FILE = "adapter", "adapter.onnx_adapter", "model_with_adapters.onnx"
ADAPTER_FILES = (ADAPTER_FOLDER, ADAPTER_FILE, ADAPTABLE_FILE, f"{ADAPTABLE_FILE}.data")
CHECKPOINT_FILE = "healing.safetensors"
SCRIPT_FILE = "run.py"
RESULTS = (PLAN_FILE, REPORT_FILE, PAGE_FILE, MODEL_FOLDER, *GRAPHS, *ADAPTER_FILES, CHECKPOINT_FILE)
"""What belongs to one compressed model: another one replaces all of it."""


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of every file of a run, by its path in the folder."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
