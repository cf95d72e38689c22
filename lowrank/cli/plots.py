"""What the command line draws beside the page."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lowrank.report.terminal.terminal import console


@contextmanager
def plotted(run: Path, folder: Path | None) -> Generator[None]:
    """Draw the plots of a run to a folder, if one is given, when the block has ended well.

    Raises:
        MissingExtra: before anything is done, if there is nothing to draw them with.
    """
    if folder is None:
        yield
        return
    from lowrank import pipeline
    from lowrank.report.plots import check_plots, write_plots

    check_plots()
    yield
    written = write_plots(pipeline.page_data_in(run), folder.expanduser())
    # Results are for stdout, and these are none of the run.
    console(stderr=True).print(f"{len(written)} plots in {folder}", soft_wrap=True)
