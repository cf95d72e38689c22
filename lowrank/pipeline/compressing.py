"""All stages in a row: from a model and a budget to a run folder and its Report."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

from lowrank.artifacts import hash_json, load_analysis, save_analysis, staged
from lowrank.artifacts.analysis import ANALYSIS_FILE, ANALYSIS_FILES
from lowrank.artifacts.journal import close_journal, open_journal
from lowrank.artifacts.lock import holding
from lowrank.backends import is_streamed
from lowrank.core.budget import Budget
from lowrank.core.linalg.drivers import watched_solvers
from lowrank.core.plan import Plan, stored_weights
from lowrank.core.rounding.formats import format_of
from lowrank.core.structures import structure_named
from lowrank.edge.quantize import check_enough
from lowrank.errors import PlanMismatch
from lowrank.evaluate.fitness import warning
from lowrank.evaluate.tasks.benchmark import Benchmark, read_benchmark
from lowrank.parallel import one_thread_each
from lowrank.pipeline.analyzing import STAGE as ANALYZE
from lowrank.pipeline.analyzing import solver_notes, with_analysis, with_saved_analysis
from lowrank.pipeline.budgets.strategies import find_plan
from lowrank.pipeline.estimate import check_room, estimate
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.healing import check_data
from lowrank.pipeline.healing import heal as heal_run
from lowrank.pipeline.plans import replacements
from lowrank.pipeline.publish.adapters import keep_adapter
from lowrank.pipeline.refining import refine
from lowrank.pipeline.request import SAME_CHANNELS, CompressOptions, Request, read_request
from lowrank.pipeline.run.layout import RESULTS, RUN
from lowrank.pipeline.run.write import History, WriteOptions, rounding_feeds, write_and_measure
from lowrank.pipeline.session import Session, open_session, settings_of, stored_analysis
from lowrank.results.report import Report
from lowrank.version import __version__

LOG = logging.getLogger("lowrank")
STAGE = "compress"
"""Of a run's journal."""


@one_thread_each()
@holding("output")
def compress(
    model: object = None,
    budget: Budget | float | None = None,
    *,
    output: str | Path = RUN,
    **options: Unpack[CompressOptions],
) -> Report:
    """Analyze, select, factorize, rewrite, save, export and measure.

    Writes `analysis.json`, `plan.json`, `model/`, `model.onnx` and `report.json` to `output`, all or none of the
    last four.

    Args:
        model: a path or a live `nn.Module`; None takes the model and the analysis of `output`.
        budget: a `Budget`, or a keep ratio; may be left out when a plan is given.
        output: the run folder.
        options: any of these.

            - plan: a plan.json to follow instead of selecting.
            - selector: the policy; by default the exact knapsack.
            - settings: which weights, and on what data; by default those of the run's analysis, if it is of this model.
            - opening: how to build the model if its file does not say.
            - refit: fit every replacement to what it sees in the compressed model (`sequential_refit`).
            - refine: then fit every block to the dense block's outputs, by some steps of training.
            - heal: then train it to imitate the dense model, in this way or for so many minutes; see `lowrank.heal`.
            - tasks: what the result is measured on beside fidelity: `sts:FILE`, ... (see `read_tasks`).
            - max_drop: instead of a budget, how much each task may lose; `fidelity` if none is named.
            - beside: a LoRA that PEFT saved for the dense model; it is kept as an adapter of the compressed one, whose
              layers then keep their channels. `Opening.lora` merges one instead.
            - latency: export the dense model too and time both.
            - int8: also write `model_int8.onnx` beside an exact `model.onnx`, where eight bits make it smaller.
            - with_past: also write `model_with_past.onnx`, a causal language model with its key-value cache.
            - target: what graphs are for: any runtime, or ONNX Runtime with its own operators; and the type of weights.
            - timings: what a budget of time is spent on, or a file with it; measured here if there is none.
            - execution: in how much memory, on which machines, and whether from where an earlier run was stopped.
            - track: shows progress.

    Raises:
        LowRankError: with what to try; what was in `output` is then as it was.
        TypeError: if there is no such option.

    Example:
        report = lowrank.compress("my-model", budget=0.5, output="run")
    """
    request, run = read_request(budget, **options), Path(output).expanduser()
    session = _opened(model, run, request)
    with session.clock.stage("read tasks"):
        benchmark = read_benchmark(request.tasks, session.dense, session.judges)
    session = with_analysis(session, request.keep)
    if not (run / ANALYSIS_FILE).exists():
        # The expensive part is worth keeping even if what follows fails; it must not displace that of an earlier run.
        session = with_saved_analysis(session)
    plan = find_plan(session, request, benchmark)
    if request.heal is None:
        _warn(session, plan)
    if request.beside is not None:
        _check_channels(plan)
    session = _with_journal(session, plan, run)
    if is_streamed(session.dense):
        from lowrank.pipeline.streamed import compress_streamed

        report = compress_streamed(session, plan, run)
    else:
        report = _written(session, plan, run, request, benchmark)
    close_journal(run, ANALYZE)
    close_journal(run, STAGE)
    if request.heal is None:
        return report
    return heal_run(
        run,
        request.heal,
        model=None if model is None or isinstance(model, str | Path) else model,
        tasks=request.tasks,
        max_drop=request.max_drop,
        latency=request.latency,
        settings=session.settings,
        opening=session.opening,
        track=request.track,
    )


def _warn(session: Session, plan: Plan) -> None:
    """Say on stderr what the analysis foretells of a budget that the model cannot bear, before anybody waits for it."""
    text = warning(session.analysis.forecast, plan.keep_ratio)
    if text is not None:
        LOG.warning("lowrank: %s", text)


def _opened(model: object, run: Path, request: Request) -> Session:
    """The model, and the settings of the run if it is the run's model."""
    stored = load_analysis(run) if model is None else stored_analysis(run)
    execution = request.execution or Execution()
    if model is None and stored is not None and stored.source.get("kind") == "checkpoint":
        execution = replace(execution, stream=True)
    session = open_session(
        model,
        run,
        stored=stored,
        check=request.check_model,
        settings=request.settings or settings_of(stored, model, _counts_file(request)),
        opening=request.opening,
        execution=execution,
        track=request.track,
    )
    request.check_run(session.dense)
    if request.target.is_fixed and request.target.is_rounded:
        check_enough(rounding_feeds(session.calibration))
    if request.heal is not None:
        check_data(session.calibration, session.settings)
    return session


def _with_journal(session: Session, plan: Plan, run: Path) -> Session:
    """The session with a journal of the plan's factors.

    Raises:
        ResourceError: if there is too little memory or disk for the plan.
    """
    weights = [record.weight for record in session.analysis.weights]
    keep, data = plan.cost / plan.dense_cost, bool(session.analysis.grams)
    needed = estimate(
        session.dense,
        weights,
        keep,
        run,
        session.execution,
        calibrated=data,
        known=session.analysis,
        timed=False,
    )
    check_room(needed, run)
    identity = {
        "model": session.dense.source["fingerprint"],
        "version of lowrank": __version__,
        "analysis": session.analysis.fingerprint,
        "plan": hash_json(plan.to_json()),
    }
    return replace(session, journal=open_journal(run, STAGE, identity, session.execution.resume))


def _written(session: Session, plan: Plan, run: Path, request: Request, benchmark: Benchmark | None) -> Report:
    """Make the model of a plan, write it to the run and measure it."""
    with watched_solvers() as used:
        layers = replacements(session, plan, refit=request.refit, permute=request.beside is None)
    with session.clock.stage("rewrite"):
        small = session.dense.rewrite(layers)
    mixed = _counts_file(request) or plan.is_typed
    target = replace(request.target, dtype="mixed") if mixed else request.target
    refinement, remarks = None, list[str]()
    # Healing begins with the same phase; and what was measured to be within a drop is written as it was measured.
    if (
        request.refine
        and request.heal is None
        and request.kind != "drop"
        and session.calibration is not None
        and layers
    ):
        with session.clock.stage("refine"):
            known = stored_weights(plan, session.analysis)
            formats = partial(format_of, dtype=target.dtype, known=known) if target.is_rounded else None
            refinement, remarks = refine(session.calibration, small, plan.is_sized, session.track, formats)
    plan = replace(plan, notes=(*plan.notes, *solver_notes(used)))
    output = WriteOptions(
        target=target,
        with_past=request.with_past,
        int8=request.int8,
        # A model that is healed is timed after that.
        latency=request.latency and request.heal is None,
        benchmark=benchmark,
        max_drop=request.max_drop,
    )
    refit = request.refit and session.calibration is not None and bool(layers)
    owned = RESULTS if session.is_saved else (*RESULTS, *ANALYSIS_FILES)
    with staged(run, owned=owned) as stage:
        if not session.is_saved:
            save_analysis(session.analysis, stage)
        beside = request.beside
        problems = keep_adapter(small, Path(beside).expanduser(), stage) if beside is not None else ()
        history = History(refit=refit, refinement=refinement, remarks=remarks, problems=problems)
        return write_and_measure(session, small, plan, stage, output, history)


def _counts_file(request: Request) -> bool:
    """Whether the bytes of the file are part of the budget, tables and all."""
    return request.budget is not None and request.budget.most_bytes is not None


def _check_channels(plan: Plan) -> None:
    """Refuse a plan whose layers have other channels than those that an adapter of the dense model was made for."""
    odd = [o for o in plan.options if not structure_named(o.structure).keeps_channels]
    if odd:
        raise PlanMismatch(
            f"{odd[0].group} would be {odd[0].structure}, which changes the channels that the kept adapter needs; "
            f"choose from {', '.join(SAME_CHANNELS)} with --structures, or merge the adapter"
        )
