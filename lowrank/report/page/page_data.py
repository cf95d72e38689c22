"""Everything that a page or a plot shows of a run, as data: nothing is read or drawn here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.verdict import verdict
from lowrank.report.page.heatmap import Grid, grid_of
from lowrank.report.page.param_shares import ParamShare, parts_of
from lowrank.report.page.positions import couplings_of, places_of
from lowrank.report.page.spectra import ShownWeight, shown_weights
from lowrank.results.forecast import Prediction, TradeOff
from lowrank.results.parts import Provenance
from lowrank.results.report import Report
from lowrank.results.sweep import Sweep

UNTOLD = ("model", "onnx", "checkpoint", "pytorch_model", "snapshot")
"""Names of files and folders that do not say which model it is."""


@dataclass(frozen=True, eq=False)
class PageData:
    """What is known of a run: of its analysis alone, or of a compressed model too."""

    title: str
    analysis: Analysis
    plan: Plan | None
    report: Report | None
    verdict: str
    weights: tuple[ShownWeight, ...]
    grid: Grid
    parts: tuple[ParamShare, ...]
    chosen: Prediction | None
    """What the plan is predicted to lose."""
    trade_off: TradeOff | None
    """The same of other budgets, where that was asked for."""
    sweep: Sweep | None
    notes: tuple[str, ...]
    provenance: Provenance
    """What the report says, or, of an analysis alone, the command and the versions."""


def page_data_of(
    analysis: Analysis,
    plan: Plan | None = None,
    report: Report | None = None,
    *,
    provenance: Provenance | None = None,
    chosen: Prediction | None = None,
    trade_off: TradeOff | None = None,
    sweep: Sweep | None = None,
    remarks: tuple[str, ...] = (),
) -> PageData:
    """What there is to show of a run.

    Args:
        analysis: of the model.
        plan: that the compressed model follows; None before there is one.
        report: what was measured of it.
        provenance: of the analysis, where there is no report.
        chosen: what the plan is predicted to lose.
        trade_off: the same of other budgets.
        sweep: the measurements of a sweep.
        remarks: what else the reader must know.
    """
    places = places_of([record.weight.name for record in analysis.weights])
    couplings = dict(
        couplings_of(
            (b.group.coupling.kind, b.group.weights) for b in analysis.couplings if b.group.coupling is not None
        )
    )
    weights = shown_weights(analysis, plan, places, couplings)
    return PageData(
        title=title_of(analysis.source),
        analysis=analysis,
        plan=plan,
        report=report,
        verdict=verdict(analysis),
        weights=weights,
        grid=grid_of(weights),
        parts=parts_of(analysis, plan, report, couplings),
        chosen=chosen,
        trade_off=trade_off,
        sweep=sweep,
        notes=(*(analysis.notes if report is None else report.notes), *remarks),
        provenance=report.provenance if report is not None else provenance or Provenance(),
    )


def title_of(source: Mapping[str, Any]) -> str:
    """What to call a model: the name of its file or folder, with that of the folder around it if it says nothing."""
    path = source.get("path")
    if not isinstance(path, str):
        return "A model in memory"
    name, around = Path(path).name, Path(path).parent.name
    return f"{around}/{name}" if Path(path).stem in UNTOLD and around else name
