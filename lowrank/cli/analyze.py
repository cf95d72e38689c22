"""`lowrank analyze`."""

from __future__ import annotations

from typing import Annotated

from lowrank.cli.options import DataOptions, ExecutionOptions, Model, OpeningOptions, OutputOptions
from lowrank.cli.running import running
from lowrank.cli.verb import Verb
from lowrank.report.terminal.show import show_analysis, show_estimate
from lowrank.report.terminal.terminal import print_json, say


@Verb
def analyze(
    model: Model,
    result: Annotated[OutputOptions, "output", "plots", "as_json"],
    data: DataOptions,
    opening: Annotated[OpeningOptions, "arch", "config", "tokenizer", "lora", "unsafe_pickle"],
    work: ExecutionOptions,
) -> None:
    """Show a model's singular spectra, and keep them for `compress`."""
    from lowrank import pipeline
    from lowrank.artifacts.analysis import figures

    output, settings, how, execution = result.output, data.settings(), opening.opening(), work.execution()
    if work.dry_run:
        show_estimate(pipeline.foresee(model, 1.0, output, settings, how, execution), result.as_json)
        return
    with running(output, result.plots) as track:
        analysis = pipeline.analyze(
            model, output=output, settings=settings, opening=how, execution=execution, track=track
        )
    if result.as_json:
        print_json(figures(analysis, spectra=True))
        return
    show_analysis(analysis)
    say(f"To look at: {output / pipeline.PAGE_FILE}")
    say(
        f"Kept in {output}. Next: lowrank compress --budget 0.5"
        + ("" if str(output) == "lowrank-run" else f" -o {output}")
    )
