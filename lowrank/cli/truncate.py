"""`lowrank truncate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank.cli.options import BudgetOptions, DataOptions, OpeningOptions, OutputOptions, RankOptions, Run
from lowrank.cli.running import show_run
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.terminal import progress_bars


@Verb
def truncate(
    *,
    run: Run = Path("lowrank-run"),
    goal: Annotated[BudgetOptions, "budget", "of", "error", "size"],
    output: Annotated[
        Path | None, Option("FOLDER", "Folder of the result (RUN-0.2, beside the run).", names=("--output", "-o"))
    ] = None,
    data: Annotated[DataOptions, "calib", "calib_only", "column"],
    opening: Annotated[OpeningOptions, "arch", "unsafe_pickle"],
    ranks: Annotated[RankOptions, "refit"],
    result: Annotated[OutputOptions, "timing", "as_json"],
) -> None:
    """Cut a finished result to a smaller budget.

    The run stays as it is, and the original model need not exist any more.
    """
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis

    budget = goal.limit()
    if budget is None:
        raise typer.BadParameter("give --budget, --error or --size")
    before = pipeline.Settings.from_json(load_analysis(run).settings) if data.changes() else None
    settings = data.settings(before) if before else None
    folder = output or pipeline.cut_name(run, budget)
    with progress_bars() as track:
        report = pipeline.truncate(
            run,
            budget,
            output=folder,
            settings=settings,
            opening=opening.opening(),
            refit=ranks.refit,
            latency=result.timing,
            track=track,
        )
    show_run(report, folder, result.as_json)
