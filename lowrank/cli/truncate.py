"""The command line's verb for a finished result that is cut again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lowrank.cli.heal import exit_on
from lowrank.cli.options import (
    Arch,
    BudgetOption,
    Calib,
    Column,
    ErrorOption,
    Json,
    SizeOption,
    Timing,
    UnitName,
    UnitOption,
    UnsafePickle,
)
from lowrank.cli.parse import budget_of, changes_of
from lowrank.report.terminal.terminal import notes, print_json, print_table, progress_bars


def truncate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run; it stays as it is.")] = Path("lowrank-run"),
    budget: BudgetOption = None,
    of: UnitOption = UnitName.params,
    error: ErrorOption = None,
    size: SizeOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the result. Default: RUN-0.2, beside the run.")
    ] = None,
    calib: Calib = None,
    column: Column = None,
    arch: Arch = None,
    unsafe_pickle: UnsafePickle = False,
    refit: Annotated[bool, typer.Option(help="Fit what is cut to what it sees in the smaller model.")] = True,
    timing: Timing = True,
    as_json: Json = False,
) -> None:
    """Cut a finished result to a smaller budget; the original need not exist any more."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis
    from lowrank.backends import Opening
    from lowrank.report.terminal.show import show_files

    wanted = budget_of(budget, of, error, None, size)
    if wanted is None:
        raise typer.BadParameter("give --budget, --error or --size")
    changes = changes_of(calib, column, None, None, None, None)
    settings = replace(pipeline.Settings.from_json(load_analysis(run).settings), **changes) if changes else None
    folder = output or pipeline.cut_name(run, wanted)
    with progress_bars() as track:
        report = pipeline.truncate(
            run,
            wanted,
            output=folder,
            settings=settings,
            opening=Opening(arch=arch, unsafe_pickle=unsafe_pickle),
            refit=refit,
            latency=timing,
            track=track,
        )
    if as_json:
        print_json(report.to_json())
    else:
        from lowrank.report.terminal.tables import plan_table, report_table

        analysis = load_analysis(folder)
        print_table(plan_table(pipeline.read_plan(folder / pipeline.PLAN_FILE, analysis, None), analysis))
        print_table(report_table(report))
        notes(report.notes)
        show_files(folder)
    exit_on(report)
