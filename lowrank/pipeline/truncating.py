"""A finished result cut again, without the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from lowrank.artifacts import save_analysis, staged
from lowrank.artifacts.lock import locked
from lowrank.backends import Backend, Opening
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.save import file_size
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.refit import sequential_refit
from lowrank.calibrate.sets import judging_sets
from lowrank.core.analysis import Analysis
from lowrank.core.budget import NAMES, TIMED, Budget
from lowrank.core.plan import Plan, check_budget, share_of
from lowrank.core.selection.recut import cutting_of
from lowrank.core.selection.remaining import CompressedWeights, Remaining, recut, remaining
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.core.weight import Coupling
from lowrank.edge.target import Target
from lowrank.errors import CalibrationError, InfeasibleBudget, LowRankError, UnsupportedModel
from lowrank.evaluate.dense_graph import DenseGraph
from lowrank.evaluate.judges import Judges
from lowrank.parallel import one_thread_each
from lowrank.pipeline.budgets.file_size import sized_plan
from lowrank.pipeline.healing import own_adapter
from lowrank.pipeline.publish.adapters import keep_adapter
from lowrank.pipeline.run.layout import ADAPTER_FOLDER, RESULTS, RUN, WITH_PAST_FILE
from lowrank.pipeline.run.read_back import Finished, find_original, hash_of, read_finished_run, take_apart
from lowrank.pipeline.run.write import History, WriteOptions, write_and_measure
from lowrank.pipeline.session import Session, Work, WorkOptions, read_calibration
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track
from lowrank.results.parts import Cut
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report


def cut_name(run: str | Path, budget: Budget | float) -> Path:
    """Where a cut result goes if nothing else is said: beside the run, with the budget behind its name.

    Example:
        >>> str(cut_name("runs/small", 0.2)), cut_name("small/", Budget.size(8e6)).name
        ('runs/small-0.2', 'small-size-8e+06')
    """
    folder = Path(run).expanduser()
    folder = folder.resolve() if folder.name in ("", "..") else folder
    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    kind = "" if budget.kind == "params" else f"{budget.kind}-"
    return folder.with_name(f"{folder.name}-{kind}{budget.limit:g}")


@one_thread_each()
def truncate(
    run: str | Path = RUN,
    budget: Budget | float | None = None,
    *,
    output: str | Path | None = None,
    model: object = None,
    refit: bool = True,
    latency: bool = True,
    **options: Unpack[WorkOptions],
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
        refit: fit what is cut to what it sees in the smaller model, so that it gives what the finished one does.
        latency: export the dense model too, and time both.
        options: `settings`, other data than that of the run's analysis, for the refit and to measure on; `opening`, how
            to build the dense module if the run does not say, and the original is not there; `track`, which shows
            progress.

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
    clock, work = Clock(), Work(**options)
    with clock.stage("open"):
        analysis, plan, report = read_finished_run(folder)
        _check_possible(folder, analysis, plan, report, budget)
        original, missing = find_original(folder, analysis, model, work.opening)
        finished = take_apart(folder, analysis, plan, report, original, work.opening or Opening())
    with locked(out):
        with clock.stage("read calibration"):
            calibration, remarks = _data(finished.full, work.settings, analysis)
        dense = calibration.backend if calibration else finished.full
        session = Session(
            dense=dense,
            graph=DenseGraph(dense),
            judges=Judges(dense, judging_sets(dense, calibration)),
            calibration=calibration,
            run=out,
            clock=clock,
            track=work.track,
            current=analysis,
        )
        if original is None:
            remarks = [f"{missing}: errors and fidelity are against the finished result", *remarks]
        reference = _reference(session, original)
        return _write(reference, _cut(session, finished, budget, refit), finished, remarks, latency)


def _check_possible(folder: Path, analysis: Analysis, plan: Plan, report: Report | None, budget: Budget) -> None:
    """Check that a result can be truncated to a budget."""
    if analysis.source.get("kind") == "checkpoint":
        raise UnsupportedModel(
            f"{folder} is of a model that was streamed, weight by weight, and has no factors in memory to cut; "
            "`lowrank compress` with the smaller budget takes the analysis that is there"
        )
    if budget.kind in TIMED:
        raise LowRankError(
            "truncate takes --budget, --error or --size; for --speedup and --latency compress the original again"
        )
    if budget.kind != "size" and report is not None and report.target.dtype == "mixed":
        raise LowRankError(
            f"{folder} was made with --size or --speedup, which chose a type for each weight: truncate it with --size, "
            "or compress the original with --budget"
        )
    now = share_of(budget, plan.options, analysis)
    if budget.kind == "size" and budget.limit > 1 and (folder / ONNX_FILE).is_file():
        now = float(file_size(folder / ONNX_FILE))
    if now is not None and budget.limit > now * (1 + 1e-9):
        what = f"{int(now):,} bytes" if budget.kind == "size" else f"{now:.4f} of the targeted {NAMES[budget.kind]}"
        raise InfeasibleBudget(
            f"{folder} keeps {what} already, less than the budget of {budget.limit:g}: a finished result only gets "
            "smaller; give less, or compress the original again"
        )


@dataclass(frozen=True)
class Smaller:
    """A smaller model of a finished one."""

    small: Backend
    plan: Plan
    """With errors as the run's analysis predicts them."""
    target: Target
    refit: bool
    entry: Cut
    """What the report says of it."""


def _cut(session: Session, finished: Finished, budget: Budget, refit: bool) -> Smaller:
    analysis, plan, full, clock = finished.analysis, finished.plan, session.dense, session.clock
    target = finished.report.target if finished.report else Target()
    weights = {record.weight.name: record.weight for record in analysis.weights}
    before = CompressedWeights(finished.layers, weights, full)
    with clock.stage("analyze"):
        left = remaining(analysis, plan.options, before, finished.fixed, finished.is_healed)
    with clock.stage("select"):
        if budget.kind == "size":
            budget, target = budget.of_original(full.nbytes), replace(target, dtype="mixed")
        chosen = _chosen(replace(session, current=left), finished, budget, target)
    same = _key(chosen.options) == _key(plan.options)
    with clock.stage("factorize"):
        layers = dict(finished.layers) if same else _recut(chosen, left, before, session.track)
    final, calibration = _against_dense(chosen, analysis), session.calibration
    refit = refit and calibration is not None and not same
    if refit and calibration is not None:
        with clock.stage("refit"):
            layers = sequential_refit(calibration, full.rewrite(layers), layers, left, session.track)
    lost = _weight_loss(before, layers)
    with clock.stage("rewrite"):
        if not same:
            couplings = () if _keeps_lora(finished) else _couplings(full, left)
            layers = agree_channel_order(layers, full.weights, couplings, before)
        small = _with_record(full.rewrite(layers), finished)
    entry = Cut(
        run=hash_of(finished),
        from_=str(finished.folder.resolve()),
        keep_before=plan.keep_ratio,
        keep_after=final.keep_ratio,
        healed=sum(e.kept for e in finished.report.healing) if finished.report else None,
        predicted={name: o.error**0.5 for o in chosen.options for name in left.groups[o.group].weights},
        weights=lost,
        as_it_was=dict(finished.fixed),
    )
    if isinstance(full.signature, Signature):
        with clock.stage("fidelity"):
            earlier = full.rewrite(finished.layers)
            judges = Judges(earlier, session.judges.sets)
            entry = replace(entry, quality=judges.quality_of(small, session.track).if_finite)
    return Smaller(small, final, target, refit, entry)


def _keeps_lora(finished: Finished) -> bool:
    """Whether a LoRA of the dense model is kept beside the finished one."""
    return (finished.folder / ADAPTER_FOLDER).exists() and not own_adapter(finished.report)


def _reference(session: Session, original: Backend | None) -> Session:
    """The session with the original, if it is there, as what is measured against."""
    signature = session.dense.signature
    if original is None:
        return session
    if isinstance(signature, Signature) and isinstance(original.signature, Signature):
        original = original.fed_with(signature)
    sets = session.judges.sets if isinstance(signature, Signature) else ()
    return replace(session, dense=original, graph=DenseGraph(original), judges=Judges(original, sets))


def _write(session: Session, result: Smaller, finished: Finished, remarks: Sequence[str], latency: bool) -> Report:
    """Write a smaller model to the session's run, and measure it."""
    assert session.run is not None
    out, report, beside = session.run, finished.report, finished.folder / ADAPTER_FOLDER
    remarks = [*remarks, *([_fixed_words(finished)] if finished.fixed else [])]
    keeps_lora = _keeps_lora(finished)
    if beside.exists() and not keeps_lora:
        _check_lost(finished, out)
        remarks.append(f"the adapter {beside} fits the earlier result alone, so it was not copied")
    with_past = (finished.folder / WITH_PAST_FILE).exists()
    with staged(out, owned=RESULTS) as stage:
        if out.resolve() != finished.folder.resolve():
            save_analysis(finished.analysis, stage)
        history = History(
            refit=result.refit,
            refinement=report.refinement if report else None,
            healing=report.healing if report else (),
            cut=[*(report.cut if report else ()), result.entry],
            problems=keep_adapter(result.small, beside, stage) if keeps_lora else (),
            remarks=remarks,
            before=report,
        )
        int8 = (finished.folder / INT8_FILE).exists()
        output = WriteOptions(target=result.target, with_past=with_past, int8=int8, latency=latency)
        return write_and_measure(session, result.small, result.plan, stage, output, history)


def _chosen(session: Session, finished: Finished, budget: Budget, target: Target) -> Plan:
    """The plan of least error within the budget."""
    selector = cutting_of(finished.plan)
    try:
        if budget.kind == "size":
            return sized_plan(session, budget, selector, target)
        return check_budget(selector.select(session.analysis, budget))
    except InfeasibleBudget as error:
        if not finished.fixed:
            raise
        raise InfeasibleBudget(f"{error}; {_fixed_words(finished)}") from None


def _fixed_words(finished: Finished) -> str:
    """What stays as it is, and why."""
    name, reason = next(iter(finished.fixed.items()))
    return (
        f"{len(finished.fixed)} of {len(finished.plan.options)} groups stay as they are, as their factors cannot be "
        f"read back from the graph: {name} ({reason})"
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
        return read_calibration(full, Settings.from_json(analysis.settings)), []
    except CalibrationError as error:
        return None, [f"measured on random inputs and not refitted, as the run's data cannot be read: {error}"]


def _recut(chosen: Plan, left: Remaining, before: CompressedWeights, track: Track) -> dict[str, Replacement]:
    options = [option for option in chosen.options if option.group not in left.fixed]
    parts = [recut(option, left, before) for option in track(options, "cutting", len(options))]
    return {name: replacement for part in parts for name, replacement in part.items()}


def _against_dense(chosen: Plan, analysis: Analysis) -> Plan:
    """The plan with errors as the run's analysis predicts them, of the dense model's outputs."""
    read = Plan.from_json(chosen.to_json(), analysis, chosen.budget)
    own = {"share": chosen.share, "notes": chosen.notes, "selector": chosen.selector, "gap": chosen.gap}
    return replace(read, **own)


def _couplings(full: Backend, left: Remaining) -> tuple[Coupling, ...]:
    """Couplings between weights that are products by themselves: of others no order is free."""
    replaced = [left.groups[group] for group, now in left.now.items() if not structure_named(now.structure).is_dense]
    narrow = {name for group in replaced for name in group.weights} - set(left.thin)
    return tuple(coupling for coupling in full.couplings if narrow.isdisjoint(coupling.weights))


def _with_record(small: Backend, finished: Finished) -> Backend:
    """The record of a graph names the weights that stay as they are, too."""
    if not finished.fixed:
        return small
    from lowrank.backends.onnx import OnnxBackend

    assert isinstance(small, OnnxBackend)
    records: dict[str, Mapping[str, Any]] = {}
    for option in finished.plan.options:
        if option.group in finished.fixed and structure_named(option.structure).replaces:
            for name in finished.analysis.groups[option.group].weights:
                layers = [layer.name for layer in finished.analysis[name].weight.layers]
                entry = {"structure": option.structure, "layers": layers, "rank": option.rank, "tensors": {}}
                records[name] = finished.replaced.get(name, entry)
    return replace(small, replaced={**records, **small.replaced})


def _weight_loss(before: CompressedWeights, layers: Mapping[str, Replacement]) -> float | None:
    """Relative difference of all weights together from what they were in the finished model; None if none of them is
    in the coordinates that it had."""
    after = CompressedWeights(layers, before.weights, before.dense)
    lost = total = 0.0
    for name in {**before.replacements, **layers}:
        ways = {each[name].structure for each in (layers, before.replacements) if name in each}
        if not any(structure_named(way).fixed_order for way in ways):
            one = before.read(name)
            lost += float(np.square(one - after.read(name)).sum())
            total += float(np.square(one).sum())
    return math.sqrt(lost / total) if total else None


def _check_lost(finished: Finished, out: Path) -> None:
    if out.resolve() == finished.folder.resolve():
        raise LowRankError(
            f"{finished.folder / ADAPTER_FOLDER} was trained for the model as it is and would be lost; give another "
            "folder with -o"
        )
