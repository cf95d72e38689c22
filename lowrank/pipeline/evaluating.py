"""A finished run measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import write_json
from lowrank.artifacts.lock import holding
from lowrank.backends import Opening, open_model
from lowrank.core.structures.base import Replacement
from lowrank.edge.target import Target
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.budgets.quality_drop import read_benchmark
from lowrank.pipeline.plans import factorize, refitted
from lowrank.pipeline.publish.model_card import write_card
from lowrank.pipeline.run.layout import MODEL_FOLDER, REPORT_FILE, RUN, files_of
from lowrank.pipeline.run.page import with_page
from lowrank.pipeline.run.provenance import provenance
from lowrank.pipeline.run.read import check_source, read_run, source_of
from lowrank.pipeline.run.read_back import held_in_graph
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track, silent
from lowrank.results.parts import Quality
from lowrank.results.report import Report, held_against


@holding("run")
def evaluate(
    run: str | Path = RUN, *, tasks: Sequence[str] = (), opening: Opening | None = None, track: Track = silent
) -> Report:
    """Measure a finished run again: its `model/` and `model.onnx` against the model that it was made from.

    Args:
        run: its folder.
        tasks: what it is measured on beside fidelity: `sts:FILE`, ... (see `read_tasks`). Without any, what an
            earlier measurement of the same files gave stays in the report.
        opening: how to build the original if its file does not say.
        track: shows progress.

    Raises:
        TaskError: if a task cannot be read, or is not one for this model.
        PlanMismatch: if the original has changed since.
        ArtifactError: if the run is not complete.
    """
    from lowrank.evaluate.measure import measure

    folder, clock = Path(run).expanduser(), Clock()
    analysis, plan, known = read_run(folder)
    model, opening = source_of(analysis, folder, opening)
    dense = open_model(model, opening)
    check_source(analysis, dense, folder)
    calibration = read_calibration(dense, Settings.from_json(analysis.settings))
    dense = calibration.backend if calibration else dense
    benchmark = read_benchmark(tasks, dense, calibration)
    refit = bool(known and known.provenance.refit)

    def replacements() -> Mapping[str, Replacement]:
        if known and known.cut:
            return {**factorize(dense, analysis, plan, track), **held_in_graph(folder, analysis, plan)}
        made = factorize(dense, analysis, plan, track)
        return refitted(calibration, made, analysis, track) if refit and calibration else made

    small = dense.saved_in(folder, replacements)
    target = known.target if known else Target()
    exact = known.parity if known else None
    report = measure(dense, small, analysis, plan, folder, calibration, True, track, clock, target, exact, benchmark)
    report = _with_kept(report, known) if known else report
    report = replace(
        report,
        healing=known.healing if known else [],
        cut=known.cut if known else [],
        seconds=clock.seconds,
        provenance=provenance(analysis, plan, refit, known.cut if known else (), known),
    )
    write_card(folder / MODEL_FOLDER, report)
    report = replace(report, files=files_of(folder))
    report = with_page(folder, folder, analysis, plan, report)
    write_json(folder / REPORT_FILE, "report", report.to_json())
    return report


def _with_kept(report: Report, known: Report) -> Report:
    """With what an earlier report says of the same files, unless it was measured again; and held against the same
    limit."""
    if known.tasks and not report.tasks:
        report = replace(report, quality=replace(report.quality or Quality(), tasks=known.tasks))
    if known.budget.kind != "drop":
        return report
    if known.budget.limit is None or {row.task for row in report.tasks} != {row.task for row in known.tasks}:
        return replace(report, budget=known.budget)
    return held_against(report, known.budget.limit)
