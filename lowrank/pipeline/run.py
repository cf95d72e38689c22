"""What a run folder holds, and what of it belongs together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank import edge
from lowrank.artifacts import hash_json, load_analysis, read_json, write_json
from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends import Backend, Opening
from lowrank.backends.inputs import Signature, spread
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.formats import Stored
from lowrank.core.plan import Plan, stored_weights
from lowrank.edge import WITH_PAST_FILE, Target
from lowrank.errors import ArtifactError, ExportError, PlanMismatch, UnsupportedModel
from lowrank.evaluate.report import ONNX_FILE, Report, held_against
from lowrank.pipeline.cards import write_card
from lowrank.pipeline.pages import PAGE_FILE, PLAN_FILE, REPORT_FILE, with_page
from lowrank.pipeline.provenance import earlier, made_with
from lowrank.progress import Clock, Track

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration
    from lowrank.evaluate.tasks import Benchmark

TOKENS = 16384
"""Of the calibration data that graphs are rounded on."""

RUN = "lowrank-run"
MODEL_FOLDER = "model"
GRAPHS = (ONNX_FILE, f"{ONNX_FILE}.data", WITH_PAST_FILE, f"{WITH_PAST_FILE}.data")
ADAPTER_FOLDER, ADAPTER_FILE, ADAPTABLE_FILE = "adapter", "adapter.onnx_adapter", "model_with_adapters.onnx"
ADAPTER_FILES = (ADAPTER_FOLDER, ADAPTER_FILE, ADAPTABLE_FILE, f"{ADAPTABLE_FILE}.data")
CHECKPOINT_FILE = "healing.safetensors"
SCRIPT_FILE = "run.py"
RESULTS = (PLAN_FILE, REPORT_FILE, PAGE_FILE, MODEL_FOLDER, *GRAPHS, *ADAPTER_FILES, CHECKPOINT_FILE)
"""What belongs to one compressed model: another one replaces all of it."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What of a result is written and measured."""

    target: Target = field(default_factory=Target)
    """What its graphs are for."""
    with_past: bool = False
    """Write `model_with_past.onnx`."""
    latency: bool = True
    """Export the dense model too, and time both."""
    benchmark: Benchmark | None = None
    """What it is measured on, beside fidelity."""
    max_drop: float | None = None
    """How much it may lose on that."""


def write_and_measure(
    dense: Backend,
    small: Backend,
    analysis: Analysis,
    plan: Plan,
    stage: Path,
    calibration: Calibration | None,
    output: Output,
    track: Track,
    clock: Clock,
    refit: bool,
    healing: Sequence[dict[str, Any]] = (),
    problems: Sequence[str] = (),
    cut: Sequence[dict[str, Any]] = (),
    remarks: Sequence[str] = (),
    before: Report | None = None,
) -> Report:
    """Everything of a run but its analysis, in `stage`; `before` is what was measured of what it was made from."""
    from lowrank.edge import file_size, fit_file, write_onnx
    from lowrank.evaluate.measure import exactness, measure

    found, notes, exact, target = list(problems), list[str](), None, output.target
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
                    if target.is_rounded:
                        exact = exactness(small, path)
                    feeds = spread(calibration.fit, TOKENS) if calibration is not None else ()
                    stored = stored_weights(plan, analysis)
                    notes += fit_file(path, target, small.signature, feeds, stored)
        except ExportError as error:
            found.append(str(error))
            _drop(stage, ONNX_FILE)
    if output.with_past:
        try:
            with clock.stage("export with past"):
                notes += write_past(small, stage, target, stored_weights(plan, analysis))
        except ExportError as error:
            found.append(str(error))
            _drop(stage, WITH_PAST_FILE)
    budget = plan.budget
    if budget is not None and budget.kind == "size" and onnx.exists():
        plan = replace(plan, share=float(file_size(onnx)))
        if not plan.meets_budget:
            found.append(
                f"{ONNX_FILE} has {int(plan.reached):,} bytes with its numbers, and {int(budget.limit):,} were "
                "allowed; lower some ranks of the plan, or give more"
            )
    report = measure(
        dense,
        small,
        analysis,
        plan,
        stage,
        calibration,
        output.latency,
        track,
        clock,
        target,
        exact,
        output.benchmark,
    )
    if output.max_drop is not None:
        report = held_against(report, output.max_drop)
    found += report.problems
    if report.parity is None:
        # A graph that failed its check is not left for anyone to ship.
        _drop(stage, ONNX_FILE)
    elif not (stage.parent / SCRIPT_FILE).exists():
        # One that is there may be the user's own, or changed.
        shutil.copyfile(Path(edge.__file__).with_name("standalone.py"), stage / SCRIPT_FILE)
    write_json(stage / PLAN_FILE, "plan", plan.to_json())
    report = replace(
        report,
        problems=found,
        notes=[*report.notes, *remarks, *notes],
        healing=list(healing),
        cut=list(cut),
        seconds=clock.seconds,
        provenance=provenance(analysis, plan, refit, cut, before),
    )
    write_card(folder, report)
    report = replace(report, files=files_of(stage))
    report = with_page(stage, stage.parent, analysis, plan, report)
    write_json(stage / REPORT_FILE, "report", report.to_json())
    return report


def write_past(backend: Backend, stage: Path, target: Target, stored: Mapping[str, Stored] | None = None) -> list[str]:
    """Write `model_with_past.onnx` and let it generate; notes on what of it is not as asked for.

    Raises:
        ExportError: if it cannot be written, does not run, or chooses other tokens than torch.
    """
    from lowrank.edge import fit_file, write_with_past
    from lowrank.evaluate.generation import check_generation

    assert isinstance(backend.signature, Signature)
    path = write_with_past(backend, stage)
    check_generation(backend, path)
    if target == Target():
        return []
    # Its inputs are not those of the calibration data, so it is rounded to the nearest.
    notes = fit_file(path, target, backend.signature, stored=stored)
    check_generation(backend, path, exact=not target.is_rounded)
    return [f"{path.name}: {note}" for note in notes]


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
    names = ("arch", "config", "tokenizer", "lora")
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


def provenance(
    analysis: Analysis,
    plan: Plan,
    refit: bool,
    cut: Sequence[Mapping[str, Any]] = (),
    before: Report | None = None,
) -> dict[str, Any]:
    """What it takes to repeat a run, after what made an earlier one."""
    commands = earlier(before)
    return {
        **made_with(),
        **({"earlier": commands} if commands else {}),
        "source": dict(analysis.source),
        "analysis": analysis.fingerprint,
        "plan": hash_json(plan.to_json()),
        "refit": refit,
        **({"cut_from": cut[-1]["run"]} if cut else {}),
    }


def read_run(folder: Path) -> tuple[Analysis, Plan, Report | None]:
    """The analysis of a finished run, the plan that its model follows, and its report, if it has one.

    Raises:
        PlanMismatch: if the model follows another plan.
        ArtifactError: if the run is not complete.
    """
    analysis = load_analysis(folder)
    content = read_json(folder / PLAN_FILE, "plan")
    plan = Plan.from_json(content, analysis, Budget.from_json(content.get("budget")))
    _check_plan(folder, plan, analysis)
    path = folder / REPORT_FILE
    return analysis, plan, Report.from_json(read_json(path, "report")) if path.is_file() else None


def _check_plan(folder: Path, plan: Plan, analysis: Analysis) -> None:
    """Refuse a plan that the saved model does not follow: `select` writes a new one beside it."""
    record = read_json(folder / MODEL_FOLDER / RECORD_FILE, "model")
    replaced = record.get("replaced")
    ranks = {name: entry.get("rank") for name, entry in replaced.items()} if isinstance(replaced, dict) else {}
    chosen = [option for option in plan.options if option.structure not in ("dense", "residual")]
    wanted = {name: option.rank for option in chosen for name in analysis.groups[option.group].weights}
    if ranks != wanted:
        odd = sorted(name for name in {*ranks, *wanted} if ranks.get(name) != wanted.get(name))
        raise PlanMismatch(
            f"{folder / PLAN_FILE} is not the plan that {folder / MODEL_FOLDER} follows: {odd[0]} has rank "
            f"{ranks.get(odd[0], 'full')} in the model and {wanted.get(odd[0], 'full')} in the plan; compress "
            f"again with it"
        )
