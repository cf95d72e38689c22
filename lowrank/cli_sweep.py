"""The command line's verbs for deciding: sweep and tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank.cli_heal import resumable
from lowrank.options import (
    Arch,
    Calib,
    Column,
    Config,
    Exclude,
    Include,
    Json,
    Model,
    Resume,
    Run,
    Samples,
    Targets,
    Tokenizer,
    UnsafePickle,
    changes_of,
    keeps_of,
)
from lowrank.report.terminal import notes, print_json, print_table, progress_bars, say

Task = Annotated[
    str,
    typer.Option(
        "--task",
        help="What quality is: fidelity (to the dense model, without labels), sts:FILE, classify:FILE, lm:FILE, "
        "images:FOLDER, retrieval:FOLDER, or package.module:function.",
    ),
]


def sweep(
    model: Model,
    output: Run = Path("lowrank-run"),
    keeps: Annotated[
        str, typer.Option(help="Keep ratios with commas, of low rank and of pruning.")
    ] = "0.8,0.5,0.3,0.2",
    task: Task = "fidelity",
    heal: Annotated[
        float | None, typer.Option(min=0.01, help="Also train each low-rank model for so many minutes.")
    ] = None,
    distil: Annotated[
        float | None,
        typer.Option(min=0, help="Minutes to train the student of half the layers. Default: as --heal, or 2; 0: none."),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option("--write", help="Keep model.onnx and model/ of this point; or front, or all. Repeatable."),
    ] = None,
    calib: Calib = None,
    column: Column = None,
    samples: Samples = None,
    include: Include = None,
    exclude: Exclude = None,
    targets: Targets = None,
    arch: Arch = None,
    config: Config = None,
    tokenizer: Tokenizer = None,
    unsafe_pickle: UnsafePickle = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Solve all budgets from one analysis, and measure them beside int8, int4, pruning and a smaller student."""
    from lowrank import pipeline
    from lowrank.backends import Opening
    from lowrank.report.comparing import sweep_table

    with resumable(output), progress_bars() as track:
        found = pipeline.sweep(
            model,
            output=output,
            keeps=keeps_of(keeps),
            task=task,
            heal=heal,
            distil=distil,
            write=tuple(write or ()),
            settings=pipeline.Settings(**changes_of(calib, column, samples, include, exclude, targets)),
            opening=Opening(arch=arch, config=config, tokenizer=tokenizer, unsafe_pickle=unsafe_pickle),
            execution=pipeline.Execution(resume=resume),
            track=track,
        )
    if as_json:
        print_json(found.to_json())
        return
    print_table(sweep_table(found))
    for sentence in found.advice:
        say(sentence)
    notes(f"{point.name}: {point.note}" for point in found.points if point.note)
    notes(f"{each['name']} is left out: {each['reason']}" for each in found.left_out)
    say(f"Kept in {output / pipeline.SWEEP_FILE}, drawn in {output / pipeline.PICTURE_FILE}.")
    written = sorted(path.name for path in (output / pipeline.POINTS_FOLDER).glob("*"))
    if written:
        say(f"Written to {output / pipeline.POINTS_FOLDER}: {', '.join(written)}")
    else:
        say("The same command with --write NAME writes a point; --write front all that are on the front.")
