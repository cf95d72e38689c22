"""`lowrank tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lowrank.cli.options import LATENCY, SIZE, DataOptions, ExecutionOptions, Model, OpeningOptions, OutputOptions
from lowrank.cli.running import running
from lowrank.cli.sweep import TASK
from lowrank.cli.verb import Option, Verb
from lowrank.core.budget import Budget
from lowrank.report.terminal.terminal import complain, print_json, print_table, say

if TYPE_CHECKING:
    from lowrank.results.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is searched for, and for how long."""

    task: Annotated[str, TASK] = "fidelity"
    max_drop: Annotated[float, Option("DROP", "What its metric may lose: 0.01 is one point.", least=0)] = 0.01
    size: Annotated[Budget | None, SIZE] = None
    latency: Annotated[Budget | None, LATENCY] = None
    trials: Annotated[int, Option("N", "Trials, earlier ones of this study included.", least=1)] = 30
    minutes: Annotated[float | None, Option("MINUTES", "Begin no trial after so many minutes.", least=0)] = None
    heal: Annotated[float, Option("MINUTES", "Also try up to so many minutes of healing.", least=0)] = 0.0
    seed: Annotated[int, Option("N", "Random seed of what is proposed.", least=0)] = 0


@Verb
def tune(
    model: Model,
    result: Annotated[OutputOptions, "output", "as_json"],
    tuning: SearchOptions,
    data: DataOptions,
    opening: Annotated[OpeningOptions, "arch", "config", "tokenizer", "unsafe_pickle"],
    work: Annotated[ExecutionOptions, "resume"],
) -> None:
    """Search for the smallest file within limits (Optuna).

    Keep ratio, structures, type of numbers and minutes of healing are tried.
    """
    from lowrank import pipeline
    from lowrank.report.terminal.comparison import trials_table

    with running(result.output) as track:
        study = pipeline.tune(
            model,
            output=result.output,
            **vars(tuning),
            settings=data.settings(),
            opening=opening.opening(),
            execution=work.execution(),
            track=track,
        )
    if result.as_json:
        print_json(study.to_json())
    else:
        print_table(trials_table(study))
        if study.exhausted:
            say("Nothing else is left to try.")
        say(f"Looked for {study.goal} within {study.limits.words}; all trials are in {result.output / 'tune.json'}.")
    if study.best is None:
        complain(_missed(study))
        raise typer.Exit(1)
    if not result.as_json:
        say(
            f"Best is trial {study.best.number}, which {result.output} holds now: lowrank compress {model} "
            f"{study.best.flags()} makes it."
        )


def _missed(study: Tuning) -> str:
    """What to say where no trial is within the limits."""
    near = study.nearest
    if near is None:
        return "no trial could be measured; the table says why"
    return (
        f"no trial of {len(study.trials)} is within {study.limits.words}; the nearest is trial {near.number} "
        f"({near.flags()}): {near.bytes:,} bytes, {near.ms:.2f} ms, drop {near.drop:.4f} "
        f"({near.verdict(study.limits)}). Allow more, or go on with --resume and more --trials"
    )
