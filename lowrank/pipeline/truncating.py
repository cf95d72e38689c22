"""A finished result cut again, without the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.artifacts import hash_json, load_analysis, read_json, save_analysis, staged
from lowrank.artifacts.files import RECORD_FILE, hash_files
from lowrank.artifacts.lock import locked
from lowrank.backends import Backend, Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.core.analysis import Analysis
from lowrank.core.budget import NAMES, Budget
from lowrank.core.cutting import cutting_of
from lowrank.core.plan import Plan, check_budget, share_of
from lowrank.core.remaining import Held, Remaining, recut, remaining
from lowrank.core.structures import Option
from lowrank.core.structures.absorb import absorbed
from lowrank.core.structures.base import Replacement
from lowrank.edge import WITH_PAST_FILE, Target, file_size
from lowrank.errors import CalibrationError, InfeasibleBudget, LowRankError, PlanMismatch, UnsupportedModel
from lowrank.evaluate.report import ONNX_FILE, Report
from lowrank.pipeline.adapting import keep_adapter
from lowrank.pipeline.analyzing import read_calibration
from lowrank.pipeline.run import (
    ADAPTER_FOLDER,
    MODEL_FOLDER,
    PLAN_FILE,
    REPORT_FILE,
    RESULTS,
    RUN,
    Output,
    check_source,
    read_run,
    source_of,
    write_and_measure,
)
from lowrank.pipeline.settings import Settings
from lowrank.pipeline.sizing import sized_plan
from lowrank.progress import Clock, Track, silent

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration


@dataclass(frozen=True, eq=False)
class _Finished:
    """A finished run, taken apart."""

    folder: Path
    analysis: Analysis
    plan: Plan
    report: Report | None
    full: Backend
    """The dense model that has the products of its factors as weights."""
    held: Mapping[str, Replacement]
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Groups that stay as they are, each with the reason."""
    replaced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """What the model's record says of each replaced weight."""

    @property
    def is_healed(self) -> bool:
        """Whether training has changed what is in it; taken to be so where no report tells."""
        return self.report is None or any(entry.get("kept") for entry in self.report.healing)


def cut_name(run: str | Path, budget: Budget | float) -> Path:
    """Where a cut result goes if nothing else is said: beside the run, with the budget behind its name.

    Example:
        >>> str(cut_name("runs/small", 0.2)), cut_name("small/", Budget.size(8e6)).name
        ('runs/small-0.2', 'small-size-8e+06')
    """
    folder = Path(run).expanduser()
    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    kind = "" if budget.kind == "params" else f"{budget.kind}-"
    name = folder.resolve().name if folder.name in ("", ".", "..") else folder.name
    return (
        folder.resolve().parent / f"{name}-{kind}{budget.limit:g}"
        if name != folder.name
        else folder.with_name(f"{name}-{kind}{budget.limit:g}")
    )


def truncate(
    run: str | Path = RUN,
    budget: Budget | float | None = None,
    *,
    output: str | Path | None = None,
    model: object = None,
    settings: Settings | None = None,
    opening: Opening | None = None,
    refit: bool = True,
    latency: bool = True,
    track: Track = silent,
) -> Report:
    """Cut a finished result to a smaller budget. The original need not exist any more.

    Factors are nested: the truncation of a truncation is that of the dense weight. So every replaced weight is taken as
    the product that it is, its leading directions in the metric of the run's data are found anew (training may have
    moved them), and the ranks of what is left are chosen as `compress` chooses them, by what cutting further adds to
    the error. Channels of heads and neurons are left out in the order in which they were chosen.

    Args:
        run: a finished run; as long as `output` is another folder nothing in it changes.
        budget: a `Budget`, or a keep ratio: a share of the dense targeted weights, as for `compress`.
        output: the folder of the result; by default beside the run, with the budget behind its name: `run-0.2`.
        model: the dense module, for runs that were made from one in memory.
        settings: other data than that of the run's analysis, for the refit and to measure on.
        opening: how to build the dense module if the run does not say, and the original is not there.
        refit: fit what is cut to what it sees in the smaller model, so that it gives what the finished one does.
        latency: export the dense model too, and time both.
        track: shows progress.

    Returns:
        What was measured: against the finished result (`cut`), and against the original if that is there.

    Raises:
        InfeasibleBudget: if the run has no more than that already, or nothing so small can be made of it.
        ArtifactError: if the run is not complete.
        UnsupportedModel: if its factors cannot be read.

    Example:
        report = lowrank.truncate("run", 0.2)
    """
    if budget is None:
        raise LowRankError("there is no budget; give --budget 0.2 (the share of parameters to keep), --error or --size")
    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    folder = Path(run).expanduser()
    out = cut_name(folder, budget) if output is None else Path(output).expanduser()
    clock = Clock()
    with clock.stage("open"):
        analysis, plan, report = _read_run(folder)
        _check_possible(folder, analysis, plan, report, budget)
        original, told = _original(folder, analysis, model, opening)
        finished = _take_apart(folder, analysis, plan, report, original, opening or Opening())
    with locked(out):
        return _cut(finished, original, told, budget, out, settings, model is not None, refit, latency, track, clock)


def _read_run(folder: Path) -> tuple[Analysis, Plan, Report | None]:
    """What a run says of itself; a graph is enough of a model."""
    if (folder / MODEL_FOLDER / RECORD_FILE).is_file() or not (folder / ONNX_FILE).is_file():
        return read_run(folder)
    analysis, content = load_analysis(folder), read_json(folder / PLAN_FILE, "plan")
    plan = Plan.from_json(content, analysis, Budget.from_json(content.get("budget")))
    path = folder / REPORT_FILE
    return analysis, plan, Report.from_json(read_json(path, "report")) if path.is_file() else None


def _check_possible(folder: Path, analysis: Analysis, plan: Plan, report: Report | None, budget: Budget) -> None:
    """Nothing, if a result can get smaller in this way."""
    if analysis.source.get("kind") == "checkpoint":
        raise UnsupportedModel(
            f"{folder} is of a model that was streamed, weight by weight, and has no factors in memory to cut; "
            "`lowrank compress` with the smaller budget takes the analysis that is there"
        )
    if budget.kind in ("latency", "milliseconds"):
        raise LowRankError("a result is cut to --budget, --error or --size; for a time compress the original again")
    if budget.kind != "size" and Target.of(report and report.onnx).dtype == "mixed":
        raise LowRankError(
            f"{folder} was made for a size, with a type for each weight: cut it to a size too, with --size, or "
            "compress the original with --budget"
        )
    graph = folder / ONNX_FILE
    now = (
        float(file_size(graph))
        if budget.kind == "size" and graph.is_file()
        else share_of(budget, plan.options, analysis)
    )
    limit = budget.limit
    if budget.kind == "size" and limit <= 1:
        return
    if now is not None and limit > now * (1 + 1e-9):
        what = f"{int(now):,} bytes" if budget.kind == "size" else f"{now:.4f} of the targeted {NAMES[budget.kind]}"
        raise InfeasibleBudget(
            f"{folder} keeps {what} already, less than the {limit:g} that it may: a finished result only gets smaller; "
            f"give less, or compress the original again"
        )


def _original(folder: Path, analysis: Analysis, model: object, opening: Opening | None) -> tuple[Backend | None, str]:
    """The model that a run was made from, if it is there, and what to say if it is not."""
    if model is not None:
        return open_model(model, opening or Opening()), ""
    path = analysis.source.get("path")
    if path is None:
        return None, "the original was a module in memory"
    try:
        name, known = source_of(analysis, folder, opening)
        backend = open_model(name, known)
        check_source(analysis, backend, folder)
    except PlanMismatch:
        return None, f"{path} has changed since the run was made from it"
    except (UnsupportedModel, OSError) as error:
        return None, f"the original cannot be read any more ({error})"
    return backend, ""


def _take_apart(
    folder: Path, analysis: Analysis, plan: Plan, report: Report | None, original: Backend | None, opening: Opening
) -> _Finished:
    """The replacements in a run's model, and the dense model around them.

    Raises:
        UnsupportedModel: if there are none that can be read.
    """
    record = folder / MODEL_FOLDER / RECORD_FILE
    content = read_json(record, "model") if record.is_file() else {}
    replaced: dict[str, Any] = content.get("replaced", {})
    if content and content.get("rebuild", {}).get("kind") != "onnx":
        from lowrank.backends.torch.finished import read_finished
        from lowrank.backends.torch.module import ModuleBackend

        known = analysis.settings.get("opening")
        arch = opening.arch or (known.get("arch") if isinstance(known, dict) else None)
        full, held = read_finished(
            folder / MODEL_FOLDER,
            analysis,
            replace(opening, arch=arch),
            original if isinstance(original, ModuleBackend) else None,
        )
        return _Finished(folder, analysis, plan, report, full, held, replaced=replaced)
    target = Target.of(report and report.onnx)
    if target.is_rounded or target.profile != "portable":
        form = f"rounded to {target.dtype}" if target.is_rounded else "fused for ONNX Runtime"
        raise UnsupportedModel(
            f"{folder / ONNX_FILE} is {form}, and there are no other factors in the run: compress once without "
            "--quantize and --profile, cut that, and round what comes of it"
        )
    from lowrank.backends.onnx.finished import read_graph

    found = read_graph(
        folder / ONNX_FILE,
        analysis,
        plan.options,
        {name: entry.get("tensors", {}) for name, entry in replaced.items()},
        folder / MODEL_FOLDER / "tokenizer.json",
    )
    return _Finished(folder, analysis, plan, report, found.backend, found.held, found.fixed, replaced)


def held_in_graph(folder: Path, analysis: Analysis, plan: Plan) -> Mapping[str, Replacement]:
    """The factors in a run's graph, by weight name, as far as they can be read."""
    return _take_apart(folder, analysis, plan, None, None, Opening()).held


def _cut(
    finished: _Finished,
    original: Backend | None,
    told: str,
    budget: Budget,
    out: Path,
    settings: Settings | None,
    live: bool,
    refit: bool,
    latency: bool,
    track: Track,
    clock: Clock,
) -> Report:
    analysis, plan, report, full = finished.analysis, finished.plan, finished.report, finished.full
    notes = [f"{told}: errors and fidelity are against the finished result"] if original is None else []
    with clock.stage("read calibration"):
        calibration, said = _data(full, settings, analysis)
    notes += said
    full = calibration.backend if calibration else full
    target = Target.of(report and report.onnx)
    weights = {record.weight.name: record.weight for record in analysis.weights}
    held = Held(finished.held, weights, full)
    with clock.stage("analyze"):
        left = remaining(analysis, plan.options, held, finished.fixed, finished.is_healed)
    with clock.stage("select"):
        if budget.kind == "size":
            budget, target = budget.of_original(full.nbytes), replace(target, dtype="mixed")
            chosen = sized_plan(full, left, budget, cutting_of(plan), target, track)
        else:
            chosen = check_budget(cutting_of(plan).select(left, budget))
    same = _key(chosen.options) == _key(plan.options)
    with clock.stage("factorize"):
        made = dict(finished.held)
        if not same:
            made = _recut(chosen, left, held, track)
    final = _against_dense(chosen, analysis, same, plan)
    refit = refit and calibration is not None and not same
    if refit and calibration is not None:
        from lowrank.calibrate import sequential_refit

        with clock.stage("refit"):
            made = sequential_refit(calibration, full.rewrite(made), made, left, track)
    lost = _weight_loss(held, made, weights)
    beside = finished.folder / ADAPTER_FOLDER
    kept_lora = beside.exists() and not _is_trained(report)
    with clock.stage("rewrite"):
        small = full.rewrite(
            made if same else absorbed(made, full.weights, () if kept_lora else _bonds(full, left), held)
        )
        small = _with_record(small, finished)
    entry = {
        "run": _hash_of(finished),
        "from": str(finished.folder.resolve()),
        "keep_before": plan.keep_ratio,
        "keep_after": final.keep_ratio,
        "healed": sum(bool(e.get("kept")) for e in report.healing) if report else None,
        "predicted": {name: o.error**0.5 for o in chosen.options for name in left.groups[o.group].weights},
        "weights": lost,
        "quality": None,
        "as_it_was": dict(finished.fixed),
    }
    if isinstance(full.signature, Signature):
        from lowrank.evaluate.measure import quality_of

        with clock.stage("fidelity"):
            entry["quality"] = quality_of(full.rewrite(finished.held), small, calibration, silent)
    notes += [
        f"{len(finished.fixed)} of {len(plan.options)} groups stay as they are, since their factors cannot be read back "
        f"from the graph: {name} ({reason})"
        for name, reason in list(finished.fixed.items())[:1]
    ]
    if beside.exists() and not kept_lora:
        _check_lost(finished, out)
        notes.append(f"{beside} was trained for the finished model and stays with it")
    reference = full if original is None else original
    if original is not None and isinstance(full.signature, Signature) and isinstance(original.signature, Signature):
        reference = original.fed_with(full.signature)
    cuts = [*(report.cut if report else ()), entry]
    output = Output(target=target, with_past=(finished.folder / WITH_PAST_FILE).exists(), latency=latency)
    with staged(out, owned=RESULTS) as stage:
        if out.resolve() != finished.folder.resolve():
            save_analysis(analysis, stage)
        problems = keep_adapter(small, beside, stage) if kept_lora else ()
        return write_and_measure(
            reference,
            small,
            analysis,
            final,
            stage,
            calibration,
            output,
            track,
            clock,
            refit,
            report.healing if report else (),
            problems,
            cuts,
            notes,
        )


def _key(options: Sequence[Option]) -> set[tuple[str, str, int]]:
    return {(o.group, o.structure, o.rank) for o in options}


def _data(full: Backend, settings: Settings | None, analysis: Analysis) -> tuple[Calibration | None, list[str]]:
    """The data that a run was made on, or other data; what to say if it is gone."""
    if not isinstance(full.signature, Signature):
        return None, []
    if settings is not None:
        return read_calibration(full, settings), []
    try:
        found = read_calibration(full, Settings.from_json(analysis.settings))
    except CalibrationError as error:
        return None, [f"measured on random inputs and not refitted, as the run's data cannot be read: {error}"]
    return found, []


def _recut(chosen: Plan, left: Remaining, held: Held, track: Track) -> dict[str, Replacement]:
    options = [option for option in chosen.options if option.group not in left.fixed]
    parts = [recut(option, left, held) for option in track(options, "cutting", len(options))]
    return {name: replacement for part in parts for name, replacement in part.items()}


def _against_dense(chosen: Plan, analysis: Analysis, same: bool, plan: Plan) -> Plan:
    """The plan with errors as the run's analysis predicts them, of the dense model's outputs."""
    known = {option.group: option for option in plan.options} if same else {}
    read = Plan.from_json(chosen.to_json(), analysis, chosen.budget)
    options = tuple(known.get(option.group, option) for option in read.options)
    return replace(
        read, options=options, share=chosen.share, notes=chosen.notes, selector=chosen.selector, gap=chosen.gap
    )


def _bonds(full: Backend, left: Remaining) -> Any:
    """Bonds between weights that are products by themselves: of others no order is free."""
    narrow = {
        name for group, now in left.now.items() if now.structure != "dense" for name in left.groups[group].weights
    }
    narrow -= set(left.thin)
    return tuple(bond for bond in full.bonds if narrow.isdisjoint(bond.weights))


def _with_record(small: Backend, finished: _Finished) -> Backend:
    """The record of a graph names the weights that stay as they are, too."""
    if not finished.fixed:
        return small
    from lowrank.backends.onnx import OnnxBackend

    assert isinstance(small, OnnxBackend)
    kept: dict[str, Mapping[str, Any]] = {}
    for option in finished.plan.options:
        if option.group in finished.fixed and option.structure not in ("dense", "residual"):
            for name in finished.analysis.groups[option.group].weights:
                layers = [layer.name for layer in finished.analysis[name].weight.layers]
                entry = {"structure": option.structure, "layers": layers, "rank": option.rank, "tensors": {}}
                kept[name] = finished.replaced.get(name, entry)
    return replace(small, replaced={**kept, **small.replaced})


def _weight_loss(held: Held, made: Mapping[str, Replacement], weights: Mapping[str, Any]) -> float:
    """Relative difference of all weights together from what they were in the finished model."""
    after = Held(made, held.weights, held.dense)
    lost = total = 0.0
    for name in weights:
        if name not in made and name not in held.replacements:
            continue
        one = held.read(name)
        lost += float(np.square(one - after.read(name)).sum())
        total += float(np.square(one).sum())
    return math.sqrt(lost / total) if total else 0.0


def _is_trained(report: Report | None) -> bool:
    """Whether the adapter beside a model was trained for it as it is."""
    entries = report.healing if report else []
    return any(entry.get("adapter") and entry.get("fold") == "no" and entry.get("kept") for entry in entries)


def _check_lost(finished: _Finished, out: Path) -> None:
    if out.resolve() == finished.folder.resolve():
        raise LowRankError(
            f"{finished.folder / ADAPTER_FOLDER} was trained for the model as it is and would be lost; give another "
            "folder with -o"
        )


def _hash_of(finished: _Finished) -> str:
    """Of what a run's model is: the files that hold its numbers, and its plan."""
    folder = finished.folder
    parts = [path for path in sorted((folder / MODEL_FOLDER).glob("model.*")) if path.is_file()]
    graphs = [path for path in (folder / ONNX_FILE, folder / f"{ONNX_FILE}.data") if path.is_file()]
    return hash_json([hash_files(parts or graphs), finished.plan.to_json()])
