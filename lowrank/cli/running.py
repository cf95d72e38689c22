"""What surrounds the work of a verb: progress, plots, what to do after Ctrl-C, and the exit code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lowrank.report.terminal.show import complain_of, show_files, show_report
from lowrank.report.terminal.terminal import complain, console, print_table, progress_bars

if TYPE_CHECKING:
    from lowrank.progress import Track
    from lowrank.results.report import Report


@contextmanager
def running(run: Path, plots: Path | None = None) -> Generator[Track]:
    """Show progress, say on Ctrl-C how to go on with what is kept, and draw the plots when the block has ended well.

    Args:
        run: the run folder.
        plots: a folder for the plots; None for no plots.

    Raises:
        MissingExtra: before anything is done, if there is nothing to draw plots with.
    """
    if plots is not None:
        from lowrank.report.plots import check_plots

        check_plots()
    try:
        with progress_bars() as track:
            yield track
    except KeyboardInterrupt:
        _say_what_is_kept(run)
        raise
    if plots is not None:
        from lowrank.pipeline import page_data_in
        from lowrank.report.plots import write_plots

        written = write_plots(page_data_in(run), plots)
        # Results are for stdout, and these are none of the run.
        console(stderr=True).print(f"{len(written)} plots in {plots}", soft_wrap=True)


def _say_what_is_kept(run: Path) -> None:
    from lowrank.artifacts.journal import PROGRESS_FOLDER
    from lowrank.pipeline import CHECKPOINT_FILE

    if (run / CHECKPOINT_FILE).is_file():
        complain(f"training is saved so far; `lowrank heal {run} --resume` with the same options continues it")
    elif (run / PROGRESS_FOLDER).is_dir():
        complain("what has been done is kept: the same command with --resume goes on")


def show_run(report: Report, run: Path, as_json: bool) -> None:
    """Show the plan, the report and the files of a run, and end with its exit code."""
    if not as_json:
        from lowrank.artifacts import load_analysis
        from lowrank.pipeline import PLAN_FILE, read_plan
        from lowrank.report.terminal.tables import plan_table

        analysis = load_analysis(run)
        print_table(plan_table(read_plan(run / PLAN_FILE, analysis, None), analysis))
    show_report(report, as_json)
    if not as_json:
        show_files(run)
    exit_on(report)


def exit_on(report: Report) -> None:
    """Exit with 1 if a report has problems, which are said."""
    if complain_of(report):
        raise typer.Exit(1)
