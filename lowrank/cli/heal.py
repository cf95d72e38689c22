"""The command line's verb for training, and what it shares with those that train on the way."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank.cli.options import (
    Adapter,
    AdapterInit,
    Arch,
    Calib,
    Column,
    Device,
    Fold,
    FoldOption,
    Initial,
    Json,
    Seed,
    Timing,
    UnsafePickle,
)
from lowrank.cli.parse import changes_of, training_of
from lowrank.report.terminal.show import complain_of, show_report
from lowrank.report.terminal.terminal import complain, progress_bars


def heal(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")] = Path("lowrank-run"),
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, all trials included.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option(min=10, help="So many steps instead of minutes; the same seed gives the same model.")
    ] = None,
    calib: Calib = None,
    column: Column = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a healing that was interrupted.")] = False,
    device: Device = "cpu",
    adapter: Adapter = None,
    adapter_init: AdapterInit = Initial.discarded,
    fold: FoldOption = Fold.no,
    arch: Arch = None,
    unsafe_pickle: UnsafePickle = False,
    timing: Timing = True,
    as_json: Json = False,
) -> None:
    """Train the model of a run to imitate the dense one, without labels; again and again if you like."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis
    from lowrank.backends import Opening

    changes = changes_of(calib, column, None, None, None, None)
    settings = replace(pipeline.Settings.from_json(load_analysis(run).settings), **changes) if changes else None
    with resumable(run), progress_bars() as track:
        report = pipeline.heal(
            run,
            training_of(minutes, steps, seed, device, adapter, adapter_init, fold),
            settings=settings,
            resume=resume,
            opening=Opening(arch=arch, unsafe_pickle=unsafe_pickle),
            latency=timing,
            track=track,
        )
    show_report(report, as_json)
    exit_on(report)


@contextmanager
def resumable(run: Path) -> Generator[None]:
    """Say on Ctrl-C how to go on with what is kept."""
    from lowrank.artifacts.journal import PROGRESS_FOLDER
    from lowrank.pipeline import CHECKPOINT_FILE

    try:
        yield
    except KeyboardInterrupt:
        if (run / CHECKPOINT_FILE).is_file():
            complain(f"what has been learnt is kept: `lowrank heal {run} --resume` with the same options goes on")
        elif (run / PROGRESS_FOLDER).is_dir():
            complain("what has been done is kept: the same command with --resume goes on")
        raise


def exit_on(report: Any) -> None:
    """Exit with 1 if a report has problems, which are said."""
    if complain_of(report):
        raise typer.Exit(1)
