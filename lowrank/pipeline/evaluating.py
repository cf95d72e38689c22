"""A finished run measured again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import write_json
from lowrank.artifacts.lock import holding
from lowrank.backends import Opening, open_model
from lowrank.core.structures.base import Replacement
from lowrank.edge import Target
from lowrank.evaluate.report import Report
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.finished import held_in_graph
from lowrank.pipeline.planning import factorize, refitted
from lowrank.pipeline.run import (
    REPORT_FILE,
    RUN,
    check_source,
    files_of,
    provenance,
    read_run,
    source_of,
)
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track, silent


@holding("run")
def evaluate(run: str | Path = RUN, *, opening: Opening | None = None, track: Track = silent) -> Report:
    """Measure a finished run again: its `model/` and `model.onnx` against the model that it was made from.

    Raises:
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
    refit = bool(known and known.provenance.get("refit"))

    def replacements() -> Mapping[str, Replacement]:
        if known and known.cut:
            return {**factorize(dense, analysis, plan, track), **held_in_graph(folder, analysis, plan)}
        made = factorize(dense, analysis, plan, track)
        return refitted(calibration, made, analysis, track) if refit and calibration else made

    small = dense.saved_in(folder, replacements)
    target = Target.of(known and known.onnx)
    exact = known.parity if known else None
    report = measure(dense, small, analysis, plan, folder, calibration, True, track, clock, target, exact)
    report = replace(
        report,
        healing=known.healing if known else [],
        cut=known.cut if known else [],
        files=files_of(folder),
        seconds=clock.seconds,
        provenance=provenance(analysis, plan, refit, known.cut if known else ()),
    )
    write_json(folder / REPORT_FILE, "report", report.to_json())
    return report
