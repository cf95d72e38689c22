"""`lowrank compress`."""

from __future__ import annotations

from typing import Annotated

import typer

from lowrank.cli.options import (
    BudgetOptions,
    DataOptions,
    ExecutionOptions,
    HealingOptions,
    OpeningOptions,
    OutputOptions,
    RankOptions,
)
from lowrank.cli.running import running, show_run
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.show import show_estimate


@Verb
def compress(
    *,
    model: Annotated[
        str | None, Option("", "As for analyze; without it, the model of the run.", is_argument=True)
    ] = None,
    goal: BudgetOptions,
    result: OutputOptions,
    data: DataOptions,
    ranks: RankOptions,
    opening: OpeningOptions,
    healing: HealingOptions,
    work: ExecutionOptions,
) -> None:
    """Factor a model within a budget.

    Writes model/, model.onnx, model_int8.onnx, plan.json, report.json and report.html to the run folder.
    """
    from lowrank import pipeline

    budget, output = goal.limit(), result.output
    if budget is None and goal.plan is None and goal.max_drop is None:
        raise typer.BadParameter("give --budget, --error, --speedup, --latency, --size, --max-drop or --plan")
    if goal.max_drop is not None and (budget is not None or goal.plan is not None):
        raise typer.BadParameter("--max-drop chooses the keep ratio itself: leave other budgets and --plan out")
    how, execution = opening.opening(), work.execution()
    stored = pipeline.stored_analysis(output)
    settings = data.settings(pipeline.settings_of(stored, model, goal.size is not None)) if data.changes() else None
    if work.dry_run:
        show_estimate(pipeline.foresee(model, goal.budget or 1.0, output, settings, how, execution), result.as_json)
        return
    with running(output, result.plots) as track:
        report = pipeline.compress(
            model,
            budget,
            output=output,
            plan=goal.plan,
            selector=ranks.policy(pipeline.SAME_CHANNELS if opening.keep_lora else None),
            settings=settings,
            opening=how,
            refit=ranks.refit,
            refine=ranks.refine,
            beside=opening.lora if opening.keep_lora else None,
            heal=healing.training(),
            tasks=goal.task or (),
            max_drop=goal.max_drop,
            latency=result.timing,
            with_past=result.with_past,
            int8=result.int8,
            timings=goal.table,
            target=result.target(),
            execution=execution,
            track=track,
        )
    show_run(report, output, result.as_json)
