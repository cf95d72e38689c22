"""Everything that a page or a plot shows, as data: no drawing, no files but those that are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.verdict import verdict
from lowrank.report.page.heatmap import Grid, grid_of
from lowrank.report.page.param_shares import Part, parts_of
from lowrank.report.page.positions import couplings_of, places_of
from lowrank.report.page.spectra import Seen, seen
from lowrank.report.page.tradeoff import Front, Measured, front_of, read_sweep
from lowrank.results.parts import Provenance
from lowrank.results.report import Report

UNTOLD = ("model", "onnx", "checkpoint", "pytorch_model", "snapshot")
"""Names of files and folders that do not say which model it is."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a run: of its analysis alone, or of a compressed model too."""

    title: str
    analysis: Analysis
    plan: Plan | None
    report: Report | None
    verdict: str
    weights: tuple[Seen, ...]
    grid: Grid
    parts: tuple[Part, ...]
    front: Front
    sweep: tuple[Measured, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    """What the report says, or, of an analysis alone, the command and the versions."""


def facts_of(
    analysis: Analysis,
    plan: Plan | None,
    report: Report | None,
    run: Path,
    provenance: Provenance,
    remarks: tuple[str, ...] = (),
) -> Facts:
    """What there is to show of a run.

    Args:
        analysis: of the model.
        plan: that the compressed model follows; None before there is one.
        report: what was measured of it.
        run: its folder, in which the measurements of a sweep may lie.
        provenance: of the analysis, where there is no report.
        remarks: what else the reader must know.
    """
    places = places_of([record.weight.name for record in analysis.weights])
    couplings = dict(
        couplings_of(
            (b.group.coupling.kind, b.group.weights) for b in analysis.couplings if b.group.coupling is not None
        )
    )
    weights = seen(analysis, plan, places, couplings)
    return Facts(
        title=title_of(analysis.source),
        analysis=analysis,
        plan=plan,
        report=report,
        verdict=verdict(analysis),
        weights=weights,
        grid=grid_of(weights),
        parts=parts_of(analysis, plan, report, couplings),
        front=front_of(analysis, plan),
        sweep=read_sweep(run),
        notes=(*(analysis.notes if report is None else report.notes), *remarks),
        provenance=provenance if report is None else report.provenance,
    )


def title_of(source: Mapping[str, Any]) -> str:
    """What to call a model: the name of its file or folder, with that of the folder around it if it says nothing."""
    path = source.get("path")
    if not isinstance(path, str):
        return "A model in memory"
    name, around = Path(path).name, Path(path).parent.name
    return f"{around}/{name}" if Path(path).stem in UNTOLD and around else name
