"""Provenance: the command that is running, the versions of what runs it, and where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lowrank.artifacts import hash_json
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.machine import processor
from lowrank.results.parts import Cut, Provenance
from lowrank.results.report import Report
from lowrank.version import __version__

PACKAGES = ("numpy", "scipy", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def made_with() -> Provenance:
    """The command that is running, the versions of what runs it, and the processor."""
    versions = {"lowrank": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Provenance(command=list(sys.argv), versions=versions, processor=processor())


def earlier(report: Report | None) -> list[list[str]]:
    """The commands that made what a report tells of, the first one first; not those that only measured it."""
    if report is None:
        return []
    given: list[Any] = [*(report.provenance.earlier or ()), report.provenance.command]
    return [[str(word) for word in each] for each in given if isinstance(each, list) and each[1:2] != ["evaluate"]]


def provenance(
    analysis: Analysis, plan: Plan, refit: bool, cut: Sequence[Cut] = (), before: Report | None = None
) -> Provenance:
    """What it takes to repeat a run, after what made an earlier one."""
    return replace(
        made_with(),
        earlier=earlier(before) or None,
        source=dict(analysis.source),
        analysis=analysis.fingerprint,
        plan=hash_json(plan.to_json()),
        refit=refit,
        cut_from=cut[-1].run if cut else None,
    )
