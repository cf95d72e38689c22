"""`lowrank select`."""

from __future__ import annotations

from typing import Annotated

import typer

from lowrank.cli.options import BudgetOptions, OutputOptions, RankOptions
from lowrank.cli.verb import BUDGET, Option, Verb
from lowrank.report.terminal.show import show_trade_off
from lowrank.report.terminal.terminal import complain, print_json, print_table, progress_bars, say


@Verb
def select(
    result: Annotated[OutputOptions, "output", "as_json"],
    goal: Annotated[BudgetOptions, "budget", "of", "error"],
    ranks: Annotated[RankOptions, "selector", "multiple", "structures"],
    curve: Annotated[bool, Option("", "Predict the error of many budgets, for the page.", BUDGET)] = False,
) -> None:
    """Choose ranks for a budget, and write plan.json.

    It takes milliseconds, as the analysis of a run is all that it reads.
    """
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis, write_json
    from lowrank.artifacts.lock import locked
    from lowrank.report.terminal.tables import plan_table

    output, budget = result.output, goal.limit()
    if budget is None and not curve:
        raise typer.BadParameter("give --budget, --error or --curve")
    selector = ranks.policy()
    with locked(output):
        analysis = load_analysis(output)
        if curve:
            with progress_bars() as track:
                predicted = pipeline.trade_off(analysis, selector, track)
            write_json(output / predicted.file, "tradeoff", predicted.to_json())
            problem = pipeline.draw_page(output, analysis)
            if budget is None:
                show_trade_off(predicted, output, result.as_json)
            if problem is not None:
                complain(problem)
                raise typer.Exit(1)
        if budget is None:
            return
        plan = pipeline.select(analysis, budget, selector)
        write_json(output / pipeline.PLAN_FILE, "plan", plan.to_json())
    if result.as_json:
        print_json(plan.to_json())
        return
    print_table(plan_table(plan, analysis))
    say(
        f"Written to {output / pipeline.PLAN_FILE}. Next: lowrank compress --plan {output / pipeline.PLAN_FILE} "
        f"-o {output}"
    )
