"""A finished run measured again."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import load_analysis, read_json, write_json
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.errors import PlanMismatch
from lowrank.evaluate.report import Report
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.compressing import (
    MODEL_FOLDER,
    PLAN_FILE,
    REPORT_FILE,
    RUN,
    check_source,
    files_of,
    provenance,
    source_of,
)
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
    _check_plan(folder, plan)
    path, opening = source_of(analysis, folder, opening)
    dense = open_model(path, opening)
    check_source(analysis, dense, folder)
    skeleton = dense.module if isinstance(dense, ModuleBackend) else None
    takes_code = skeleton is not None and dense.source["kind"] in ("module", "arch")
    loaded = load(folder, arch=(lambda: copy.deepcopy(skeleton)) if takes_code and skeleton is not None else None)
    small: Backend
    if isinstance(dense, ModuleBackend) and isinstance(loaded, nn.Module):
        small = replace(dense, module=loaded)
    else:
        assert isinstance(dense, StateDictBackend) and isinstance(loaded, dict)
        small = replace(dense, tensors=loaded)
    settings = Settings.from_json(analysis.settings)
    report = measure(dense, small, analysis, plan, folder, read_calibration(dense, settings), True, track, clock)
    report = replace(report, files=files_of(folder), seconds=clock.seconds, provenance=provenance(analysis, plan))
    write_json(folder / REPORT_FILE, "report", report.to_json())
    return report


def _check_plan(folder: Path, plan: Plan) -> None:
    """Refuse a plan that the saved model does not follow: `select` writes a new one beside it."""
    from lowrank.backends.torch.module import RECORD_FILE

    record = read_json(folder / MODEL_FOLDER / RECORD_FILE, "model")
    replaced = record.get("replaced")
    ranks = {name: entry.get("rank") for name, entry in replaced.items()} if isinstance(replaced, dict) else {}
    wanted = {option.group: option.rank for option in plan.options if option.structure != "dense"}
    if ranks != wanted:
        odd = sorted(name for name in {*ranks, *wanted} if ranks.get(name) != wanted.get(name))
        raise PlanMismatch(
            f"{folder / PLAN_FILE} is not the plan that {folder / MODEL_FOLDER} follows: {odd[0]} has rank "
            f"{ranks.get(odd[0], 'full')} in the model and {wanted.get(odd[0], 'full')} in the plan; compress "
            f"again with it"
        )
