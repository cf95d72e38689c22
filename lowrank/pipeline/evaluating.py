"""A finished run measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import load_analysis, read_json, write_json
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.evaluate.report import Report
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.compressing import PLAN_FILE, REPORT_FILE, RUN, check_source, provenance, source_of
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track, silent


def evaluate(run: str | Path = RUN, *, opening: Opening | None = None, track: Track = silent) -> Report:
    """Measure a finished run again: its `model/` and `model.onnx` against the model that it was made from.

    Raises:
        PlanMismatch: if the original has changed since.
        ArtifactError: if the run is not complete.
    """
    from torch import nn

    from lowrank.backends.torch import ModuleBackend, StateDictBackend, load
    from lowrank.evaluate.measure import measure

    folder, clock = Path(run).expanduser(), Clock()
    analysis = load_analysis(folder)
    content = read_json(folder / PLAN_FILE, "plan")
    plan = Plan.from_json(content, analysis, Budget.from_json(content.get("budget")))
    path, opening = source_of(analysis, folder, opening)
    dense = open_model(path, opening)
    check_source(analysis, dense, folder)
    loaded = load(folder, arch=opening.arch)
    small: Backend
    if isinstance(dense, ModuleBackend) and isinstance(loaded, nn.Module):
        small = replace(dense, module=loaded)
    else:
        assert isinstance(dense, StateDictBackend) and isinstance(loaded, dict)
        small = replace(dense, tensors=loaded)
    settings = Settings.from_json(analysis.settings)
    report = measure(dense, small, analysis, plan, folder, read_calibration(dense, settings), True, track, clock)
    report = replace(report, seconds=clock.seconds, provenance=provenance(analysis, plan))
    write_json(folder / REPORT_FILE, "report", report.to_json())
    return report
