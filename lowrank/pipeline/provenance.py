"""Provenance: the command that is running, the versions of what runs it, and where."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lowrank import __version__
from lowrank.evaluate.report import Report
from lowrank.machine import processor

PACKAGES = ("numpy", "scipy", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def made_with() -> dict[str, Any]:
    """`command`, `versions` and `processor`."""
    versions = {"lowrank": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"command": list(sys.argv), "versions": versions, "processor": processor()}


def earlier(report: Report | None) -> list[list[str]]:
    """The commands that made what a report tells of, the first one first; not those that only measured it."""
    if report is None:
        return []
    made = report.provenance
    given = [*made.get("earlier", []), made.get("command")] if isinstance(made.get("earlier", []), list) else []
    return [[str(word) for word in each] for each in given if isinstance(each, list) and each[1:2] != ["evaluate"]]
