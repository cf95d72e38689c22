"""`lowrank heal`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from lowrank.cli.options import DataOptions, HealingOptions, OpeningOptions, OutputOptions, Run
from lowrank.cli.running import exit_on, running
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.show import show_report


@Verb
def heal(
    *,
    run: Run = Path("lowrank-run"),
    minutes: Annotated[float, Option("MINUTES", "How long, all trials included.", least=0.01)] = 10.0,
    steps: Annotated[int | None, Option("N", "So many steps instead of minutes.", least=10)] = None,
    data: Annotated[DataOptions, "calib", "calib_only", "column"],
    resume: Annotated[bool, Option("", "Go on with a healing that was interrupted.")] = False,
    healing: Annotated[HealingOptions, "seed", "device", "adapter", "initial", "fold"],
    opening: Annotated[OpeningOptions, "arch", "unsafe_pickle"],
    result: Annotated[OutputOptions, "timing", "as_json"],
) -> None:
    """Train a run's model to imitate the dense one.

    It needs no labels, and can be done again and again.
    """
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis

    before = pipeline.Settings.from_json(load_analysis(run).settings) if data.changes() else None
    settings = data.settings(before) if before else None
    with running(run) as track:
        report = pipeline.heal(
            run,
            healing.training(minutes, steps),
            settings=settings,
            resume=resume,
            opening=opening.opening(),
            latency=result.timing,
            track=track,
        )
    show_report(report, result.as_json)
    exit_on(report)
