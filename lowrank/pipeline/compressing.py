"""All stages in a row: from a model and a budget to a run folder and its Report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank import __version__
from lowrank.artifacts import hash_json, load_analysis, save_analysis, staged, write_json
from lowrank.artifacts.analysis import JSON_FILE
from lowrank.backends import Backend, Opening, open_model
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan
from lowrank.core.select import Selector
from lowrank.core.structures.absorb import absorbed
from lowrank.edge import WITH_PAST_FILE
from lowrank.errors import ArtifactError, ExportError, LowRankError, PlanMismatch, UnsupportedModel
from lowrank.evaluate.report import ONNX_FILE, Report
from lowrank.pipeline.analyzing import analyze_backend, kept_analysis, read_calibration, settings_of
from lowrank.pipeline.planning import factorize, read_plan, select
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track, silent

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration

RUN = "lowrank-run"
PLAN_FILE, REPORT_FILE, MODEL_FOLDER = "plan.json", "report.json", "model"
GRAPHS = (ONNX_FILE, f"{ONNX_FILE}.data", WITH_PAST_FILE, f"{WITH_PAST_FILE}.data")
RESULTS = (PLAN_FILE, REPORT_FILE, MODEL_FOLDER, *GRAPHS)


def compress(
    model: object = None,
    budget: Budget | float | None = None,
    *,
    output: str | Path = RUN,
    plan: str | Path | None = None,
    selector: Selector | None = None,
    settings: Settings | None = None,
    opening: Opening | None = None,
    refit: bool = True,
    latency: bool = True,
    with_past: bool = False,
    track: Track = silent,
) -> Report:
    """Analyze, select, factorize, rewrite, save, export and measure.

    Writes `analysis.json`, `plan.json`, `model/`, `model.onnx` and `report.json` to `output`, all or none of the
    last four.

    Args:
        model: a path or a live `nn.Module`; None takes the model and the analysis of `output`.
        budget: a `Budget`, or a keep ratio; may be left out when a plan is given.
        output: the run folder.
        plan: a plan.json to follow instead of selecting.
        selector: the policy; by default the exact knapsack.
        settings: which weights, and on what data; by default those of the run's analysis, if it is of this model.
        opening: how to build the model if its file does not say.
        refit: fit every replacement to what it sees in the compressed model (`sequential_refit`).
        latency: export the dense model too and time both.
        with_past: also write `model_with_past.onnx`, a causal language model with its key-value cache.
        track: shows progress.

    Raises:
        LowRankError: with what to try; what was in `output` is then as it was.

    Example:
        report = lowrank.compress("my-model", budget=0.5, output="run")
    """
    if budget is None and plan is None:
        raise LowRankError(
            "there is no budget; give --budget 0.5 (the share of parameters to keep), --error, or a --plan"
        )
    if isinstance(budget, int | float):
        budget = Budget.params(budget)
    run, clock = Path(output).expanduser(), Clock()
    kept = load_analysis(run) if model is None else kept_analysis(run)
    settings = settings or settings_of(kept, model)
    anew = model is not None
    if model is None:
        assert kept is not None
        model, opening = source_of(kept, run, opening)
    opening = opening or Opening()
    with clock.stage("open"):
        backend = open_model(model, opening)
    if kept is not None and not anew:
        check_source(kept, backend, run)
    with clock.stage("read calibration"):
        calibration = read_calibration(backend, settings)
        backend = calibration.backend if calibration else backend
    analysis = analyze_backend(backend, calibration, settings, opening, kept, track, clock)
    if not (run / JSON_FILE).exists():
        # The expensive part is worth keeping even if what follows fails; it must not displace that of an earlier run.
        save_analysis(analysis, run)
    with clock.stage("select"):
        chosen = _plan(analysis, budget, plan, selector)
    with clock.stage("factorize"):
        made = factorize(backend, analysis, chosen, track)
    if refit and calibration is not None and made:
        from lowrank.calibrate import sequential_refit

        with clock.stage("refit"):
            made = sequential_refit(calibration, backend.rewrite(made), made, analysis, track)
    with clock.stage("rewrite"):
        # Permutations last: until then every weight is compared with its own dense outputs.
        small = backend.rewrite(absorbed(made, backend.weights, backend.bonds, backend))
    with staged(run, owned=RESULTS) as stage:
        if analysis is not kept:
            save_analysis(analysis, stage)
        report = _write_and_measure(
            backend, small, analysis, chosen, stage, calibration, latency, with_past, track, clock
        )
    return report


def _write_and_measure(
    dense: Backend,
    small: Backend,
    analysis: Analysis,
    plan: Plan,
    stage: Path,
    calibration: Calibration | None,
    latency: bool,
    with_past: bool,
    track: Track,
    clock: Clock,
) -> Report:
    """Everything of a run but its analysis, in `stage`."""
    from lowrank.edge import write_onnx, write_with_past
    from lowrank.evaluate.generation import check_generation
    from lowrank.evaluate.measure import measure

    problems: list[str] = []
    folder, onnx = stage / MODEL_FOLDER, stage / ONNX_FILE
    folder.mkdir()
    with clock.stage("save"):
        small.save(folder)
    with clock.stage("load again"):
        small = small.reloaded(folder)
    if not isinstance(small.signature, str):
        try:
            with clock.stage("export"):
                for path in track((onnx,), "writing ONNX", 1):
                    write_onnx(small, path)
        except ExportError as error:
            problems.append(str(error))
    if with_past:
        try:
            with clock.stage("export with past"):
                path = write_with_past(small, stage)
                check_generation(small, path)
        except ExportError as error:
            problems.append(str(error))
            _drop(stage, WITH_PAST_FILE)
    report = measure(dense, small, analysis, plan, stage, calibration, latency, track, clock)
    problems += report.problems
    if report.parity is None:
        # A graph that failed its check is not left for anyone to ship.
        _drop(stage, ONNX_FILE)
    write_json(stage / PLAN_FILE, "plan", plan.to_json())
    report = replace(
        report,
        problems=problems,
        files=files_of(stage),
        seconds=clock.seconds,
        provenance=provenance(analysis, plan),
    )
    write_json(stage / REPORT_FILE, "report", report.to_json())
    return report


def _drop(folder: Path, name: str) -> None:
    for each in (name, f"{name}.data"):
        (folder / each).unlink(missing_ok=True)


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of every file of a run, by its path in the folder."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def source_of(analysis: Analysis, run: Path, opening: Opening | None) -> tuple[str, Opening]:
    """The path of the model that an analysis was made from, and how to build it.

    Raises:
        UnsupportedModel: if it was a module in memory.
    """
    path = analysis.source.get("path")
    if path is None:
        raise UnsupportedModel(f"the analysis in {run} is of a module in memory; give compress the module too")
    known = analysis.settings.get("opening")
    if not isinstance(path, str) or not isinstance(known, dict):
        raise ArtifactError(f"the analysis in {run} does not say where its model is; run `lowrank analyze MODEL` again")
    given = opening or Opening()
    names = ("arch", "config", "tokenizer")
    return path, replace(given, **{name: getattr(given, name) or known.get(name) for name in names})


def check_source(kept: Analysis, backend: Backend, run: Path) -> None:
    """Refuse when the file that a run was made from has changed under the same name.

    Raises:
        PlanMismatch: with both fingerprints.
    """
    path, before, now = kept.source.get("path"), kept.source.get("fingerprint"), backend.source["fingerprint"]
    if path is not None and path == backend.source.get("path") and before != now:
        raise PlanMismatch(
            f"{path} has changed since it was analysed: the analysis in {run} is of {before}, the file is now "
            f"{now}; run "
            f"`lowrank analyze {path}` again"
        )


def _plan(analysis: Analysis, budget: Budget | None, plan: str | Path | None, selector: Selector | None) -> Plan:
    if plan is not None:
        return read_plan(Path(plan), analysis, budget)
    assert budget is not None
    return select(analysis, budget, selector)


def provenance(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """What it takes to repeat a run."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"lowrank": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "scipy", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "versions": versions,
        "source": dict(analysis.source),
        "analysis": analysis.fingerprint,
        "plan": hash_json(plan.to_json()),
    }
