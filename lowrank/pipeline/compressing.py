"""All stages in a row: from a model and a budget to a run folder and its Report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowrank.artifacts import hash_json, load_analysis, save_analysis, staged
from lowrank.artifacts.analysis import JSON_FILE, kept_in
from lowrank.artifacts.journal import close_journal, open_journal
from lowrank.artifacts.lock import holding
from lowrank.backends import Backend, Opening, is_streamed, open_model
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.linalg.drivers import watched_solvers
from lowrank.core.plan import Plan, check_budget
from lowrank.core.selection.knapsack import Knapsack, share_in_time
from lowrank.core.selection.selector import Selector
from lowrank.core.selection.timings import Timings
from lowrank.core.structures import structure_named, structures
from lowrank.core.structures.permute import agree_channel_order
from lowrank.edge.target import Target
from lowrank.errors import HealingError, InfeasibleBudget, LowRankError, PlanMismatch
from lowrank.parallel import processes
from lowrank.pipeline.analyzing import STAGE as ANALYZE
from lowrank.pipeline.analyzing import analyze_backend, kept_analysis, read_calibration, settings_of, solver_notes
from lowrank.pipeline.budgets.file_size import sized_plan
from lowrank.pipeline.budgets.quality_drop import Search, check_drop, read_benchmark
from lowrank.pipeline.estimate import estimate
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.healing import Training, check_trainable
from lowrank.pipeline.healing import heal as heal_run
from lowrank.pipeline.plans import factorize, read_plan, refitted, select
from lowrank.pipeline.publish.adapters import keep_adapter
from lowrank.pipeline.run.layout import RESULTS, RUN
from lowrank.pipeline.run.read import check_source, source_of
from lowrank.pipeline.run.write import Output, write_and_measure
from lowrank.pipeline.settings import Settings
from lowrank.progress import Clock, Track, silent
from lowrank.results.report import Report
from lowrank.version import __version__

STAGE = "compress"
"""Of a run's journal."""
SAME_CHANNELS = tuple(s.name for s in structures() if s.keeps_channels and not s.is_dense)
"""Structures after which a layer reads and gives what it did before."""


@holding("output")
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
    heal: Training | float | None = None,
    tasks: Sequence[str] = (),
    max_drop: float | None = None,
    beside: str | Path | None = None,
    latency: bool = True,
    with_past: bool = False,
    target: Target | None = None,
    timings: Timings | str | Path | None = None,
    execution: Execution | None = None,
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
        heal: then train it to imitate the dense model, in this way or for so many minutes; see `lowrank.heal`.
        tasks: what the result is measured on beside fidelity: `sts:FILE`, ... (see `read_tasks`).
        max_drop: instead of a budget, how much each task may lose; `fidelity` if none is named.
        beside: a LoRA that PEFT saved for the dense model; it is kept as an adapter of the compressed one, whose
            layers then keep their channels. `Opening.lora` merges one instead.
        latency: export the dense model too and time both.
        with_past: also write `model_with_past.onnx`, a causal language model with its key-value cache.
        target: what graphs are for: any runtime, or ONNX Runtime with its own operators; and the type of weights.
        timings: what a budget of time is spent on, or a file with it; measured here if there is none.
        execution: in how much memory, on which machines, and whether from where an earlier run was stopped.
        track: shows progress.

    Raises:
        LowRankError: with what to try; what was in `output` is then as it was.

    Example:
        report = lowrank.compress("my-model", budget=0.5, output="run")
    """
    target, execution = target or Target(), execution or Execution()
    target.check()
    check_drop(max_drop)
    if max_drop is not None and (budget is not None or plan is not None):
        raise LowRankError("a largest drop finds its own keep ratio: leave the budget or the plan out")
    if budget is None and plan is None and max_drop is None:
        raise LowRankError(
            "there is no budget; give --budget 0.5 (the share of parameters to keep), --error, or a --plan"
        )
    heal = heal if heal is None or isinstance(heal, Training) else Training(minutes=heal)
    if heal is not None and processes()[1] > 1:
        raise HealingError("several processes compress first and heal then: `accelerate launch -m lowrank heal RUN`")
    if beside is not None and heal is not None and heal.adapter is not None and heal.fold == "no":
        raise HealingError("an adapter is to be kept and another trained: leave one out, or fold the trained one")
    if isinstance(budget, int | float):
        budget = Budget.params(budget)
    if budget is not None and budget.kind == "size" and target.dtype != "float32":
        raise LowRankError("a size chooses the type of each weight; leave --quantize out")
    timed = budget is not None and budget.kind in ("latency", "milliseconds")
    if timings is not None:
        if not timed:
            raise LowRankError("a table of timings is for a budget of time; give --latency 0.5")
        timings = _given(timings, target)
    run, clock = Path(output).expanduser(), Clock()
    kept = load_analysis(run) if model is None else kept_analysis(run)
    settings = settings or settings_of(kept, model, budget is not None and budget.kind == "size")
    anew = model is not None
    if model is None:
        assert kept is not None
        model, opening = source_of(kept, run, opening)
    opening = opening or Opening()
    again = kept is not None and not anew and kept.source.get("kind") == "checkpoint"
    with clock.stage("open"):
        backend = open_model(model, opening, execution.memory, again or execution.streamed)
    if kept is not None and not anew:
        check_source(kept, backend, run)
    if is_streamed(backend):
        from lowrank.pipeline.streamed import refuse_whole

        sized = budget is not None and budget.kind == "size"
        quantize = target.dtype != "float32"
        asked = {"heal": heal, "latency": timed, "size": sized, "quantize": quantize, "with_past": with_past}
        refuse_whole(**asked, keep_lora=beside, task=tasks, max_drop=max_drop is not None)
    if heal is not None:
        check_trainable(backend)
    with clock.stage("read calibration"):
        calibration = read_calibration(backend, settings)
        backend = calibration.backend if calibration else backend
    tasks = tasks or (("fidelity",) if max_drop is not None else ())
    with clock.stage("read tasks"):
        benchmark = read_benchmark(tasks, backend, calibration)
    analysis = analyze_backend(backend, calibration, settings, opening, kept, track, clock, execution, run)
    if not (run / JSON_FILE).exists():
        # The expensive part is worth keeping even if what follows fails; it must not displace that of an earlier run.
        save_analysis(analysis, run)
        analysis = kept = kept_in(run, analysis)
        close_journal(run, ANALYZE)
    if beside is not None:
        selector = selector or Knapsack(structures=SAME_CHANNELS)
    if timed:
        assert budget is not None
        with clock.stage("time operators"):
            timings = timings or _time(backend, analysis, target, track)
        budget = budget.of_whole(None if timings.whole is None else timings.whole / 1e3)
        if selector is None or isinstance(selector, Knapsack):
            selector = replace(selector or Knapsack(), timings=timings)
    if budget is not None and budget.kind == "size":
        budget = budget.of_original(backend.nbytes)
        target = replace(target, dtype="mixed")
    with clock.stage("select"):
        if max_drop is not None:
            assert benchmark is not None
            search = Search(
                dense=backend,
                analysis=analysis,
                calibration=calibration,
                benchmark=benchmark,
                selector=selector,
                refit=refit,
                target=target,
                free=beside is None,
            )
            chosen = search.plan(max_drop, track)
        elif budget is not None and budget.kind == "size" and plan is None:
            chosen = sized_plan(backend, analysis, budget, _knapsack(selector), target, track)
        else:
            chosen = _plan(analysis, budget, plan, selector, timings)
        if any(option.dtype != "float32" for option in chosen.options):
            target = replace(target, dtype="mixed")
        if beside is not None:
            _check_channels(chosen)
    weights = [record.weight for record in analysis.weights]
    estimate(backend, weights, chosen.cost / chosen.dense_cost, run, execution, timed=False).check(run)
    identity = {
        "model": backend.source["fingerprint"],
        "version of lowrank": __version__,
        "analysis": analysis.fingerprint,
        "plan": hash_json(chosen.to_json()),
    }
    journal = open_journal(run, STAGE, identity, execution.resume)
    if is_streamed(backend):
        from lowrank.backends.checkpoint.backend import CheckpointBackend
        from lowrank.pipeline.streamed import compress_streamed

        assert isinstance(backend, CheckpointBackend)
        report = compress_streamed(backend, analysis, chosen, run, execution, journal, track, clock)
        close_journal(run, ANALYZE)
        close_journal(run, STAGE)
        return report
    with watched_solvers() as used:
        with clock.stage("factorize"):
            made = factorize(backend, analysis, chosen, track, execution, journal)
        refit = refit and calibration is not None and bool(made)
        if refit and calibration is not None:
            with clock.stage("refit"):
                made = refitted(calibration, made, analysis, track, journal)
    chosen = replace(chosen, notes=(*chosen.notes, *solver_notes(used)))
    with clock.stage("rewrite"):
        # Permutations last: until then every weight is compared with its own dense outputs.
        couplings = backend.couplings if beside is None else ()
        small = backend.rewrite(agree_channel_order(made, backend.weights, couplings, backend))
    with staged(run, owned=RESULTS) as stage:
        if analysis is not kept:
            save_analysis(analysis, stage)
        problems = keep_adapter(small, Path(beside).expanduser(), stage) if beside is not None else ()
        report = write_and_measure(
            backend,
            small,
            analysis,
            chosen,
            stage,
            calibration,
            # A model that is healed is timed after that.
            Output(
                target=target,
                with_past=with_past,
                latency=latency and heal is None,
                benchmark=benchmark,
                max_drop=max_drop,
            ),
            track,
            clock,
            refit,
            problems=problems,
        )
    close_journal(run, ANALYZE)
    close_journal(run, STAGE)
    if heal is None:
        return report
    return heal_run(
        run,
        heal,
        model=None if isinstance(model, str | Path) else model,
        settings=settings,
        opening=opening,
        tasks=tasks,
        max_drop=max_drop,
        latency=latency,
        track=track,
    )


def _knapsack(selector: Selector | None) -> Knapsack:
    """The selector that can choose types."""
    if selector is None or isinstance(selector, Knapsack):
        return selector or Knapsack()
    raise InfeasibleBudget("a size is for the knapsack, which chooses types, too; leave --selector out")


def _given(timings: Timings | str | Path, target: Target) -> Timings:
    """A table that was given, checked before anything long begins."""
    from lowrank.pipeline.budgets.operator_times import check_table, read_table

    if isinstance(timings, Timings):
        return check_table(timings, target)
    return read_table(Path(timings).expanduser(), target)


def _time(backend: Backend, analysis: Analysis, target: Target, track: Track) -> Timings:
    """The table of this machine."""
    from lowrank.pipeline.budgets.operator_times import time_here, work_here

    groups = [(g, [analysis[name].weight for name in g.weights]) for g in analysis.groups.values()]
    return time_here(backend, work_here(backend, groups, target), target, track)


def _check_channels(plan: Plan) -> None:
    """Refuse a plan whose layers have other channels than those that an adapter of the dense model was made for."""
    odd = [o for o in plan.options if not structure_named(o.structure).keeps_channels]
    if odd:
        raise PlanMismatch(
            f"{odd[0].group} would be {odd[0].structure}, which changes the channels that the adapter was made for; "
            f"choose from {', '.join(SAME_CHANNELS)} with --structures, or merge the adapter"
        )


def _plan(
    analysis: Analysis,
    budget: Budget | None,
    plan: str | Path | None,
    selector: Selector | None,
    timings: Timings | None,
) -> Plan:
    if plan is None:
        assert budget is not None
        return select(analysis, budget, selector)
    if timings is None:
        return read_plan(Path(plan), analysis, budget)
    assert budget is not None
    given = read_plan(Path(plan), analysis, None)
    share = share_in_time(given.options, analysis, timings)
    return check_budget(replace(given, budget=budget, share=share))
