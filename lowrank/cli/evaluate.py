"""`lowrank evaluate`."""

from __future__ import annotations

from typing import Annotated

from lowrank.cli.options import BudgetOptions, OpeningOptions, OutputOptions
from lowrank.cli.running import exit_on, running
from lowrank.cli.verb import Verb
from lowrank.report.terminal.show import show_report


@Verb
def evaluate(
    result: Annotated[OutputOptions, "output", "plots", "as_json"],
    goal: Annotated[BudgetOptions, "task"],
    opening: Annotated[OpeningOptions, "arch", "unsafe_pickle"],
) -> None:
    """Measure a run again.

    Its model/ and model.onnx are compared with the model that they were made from.
    """
    from lowrank import pipeline

    with running(result.output, result.plots) as track:
        report = pipeline.evaluate(result.output, tasks=goal.task or (), opening=opening.opening(), track=track)
    show_report(report, result.as_json)
    exit_on(report)
