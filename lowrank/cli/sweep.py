"""`lowrank sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lowrank.cli.options import DataOptions, ExecutionOptions, Model, OpeningOptions, OutputOptions, ratios_of
from lowrank.cli.running import running
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.terminal import notes, print_json, print_table, say

TASK = Option("TASK", "What quality is: fidelity, sts:FILE, ...")


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is compared, and how long it is trained."""

    keeps: Annotated[str, Option("RATIOS", "Keep ratios of low rank and pruning.")] = "0.8,0.5,0.3,0.2"
    task: Annotated[str, TASK] = "fidelity"
    heal: Annotated[float | None, Option("MINUTES", "Also train each low-rank model so long.", least=0.01)] = None
    distil: Annotated[float | None, Option("MINUTES", "Train the smaller student so long; 0: none.", least=0)] = None
    write: Annotated[list[str] | None, Option("NAME", "Keep a point's model; or front, all. Repeatable.")] = None


@Verb
def sweep(
    model: Model,
    result: Annotated[OutputOptions, "output", "as_json"],
    sweeping: SweepOptions,
    data: DataOptions,
    opening: Annotated[OpeningOptions, "arch", "config", "tokenizer", "unsafe_pickle"],
    work: Annotated[ExecutionOptions, "resume"],
) -> None:
    """Compare all budgets with rounding, pruning and a student.

    All budgets are solved from one analysis, and measured beside int8, int4, pruning and a student of half the layers,
    which is trained as long as --heal says, or for 2 minutes.
    """
    from lowrank import pipeline
    from lowrank.report.terminal.comparison import sweep_table

    output = result.output
    with running(output) as track:
        comparison = pipeline.sweep(
            model,
            output=output,
            keeps=ratios_of(sweeping.keeps),
            task=sweeping.task,
            heal=sweeping.heal,
            distil=sweeping.distil,
            write=tuple(sweeping.write or ()),
            settings=data.settings(),
            opening=opening.opening(),
            execution=work.execution(),
            track=track,
        )
    if result.as_json:
        print_json(comparison.to_json())
        return
    print_table(sweep_table(comparison))
    for sentence in comparison.advice:
        say(sentence)
    notes(f"{point.name}: {point.note}" for point in comparison.points if point.note)
    notes(f"{each['name']} is left out: {each['reason']}" for each in comparison.left_out)
    say(f"Kept in {output / 'sweep.json'}, drawn in {output / pipeline.PICTURE_FILE} and {pipeline.PAGE_FILE}.")
    written = sorted(path.name for path in (output / pipeline.POINTS_FOLDER).glob("*"))
    if written:
        say(f"Written to {output / pipeline.POINTS_FOLDER}: {', '.join(written)}")
    else:
        say("The same command with --write NAME writes a point; --write front all that are on the front.")
