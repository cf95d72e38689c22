"""The command line's verbs for deciding: sweep and tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank.cli.heal import resumable
from lowrank.cli.options import (
    Arch,
    Calib,
    Column,
    Config,
    Exclude,
    Include,
    Json,
    LatencyOption,
    Model,
    Resume,
    Run,
    Samples,
    SizeOption,
    Targets,
    Tokenizer,
    UnitName,
    UnsafePickle,
)
from lowrank.cli.parse import budget_of, changes_of, keeps_of
from lowrank.report.terminal.terminal import complain, notes, print_json, print_table, progress_bars, say

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
    from lowrank.report.terminal.comparison import sweep_table

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
    say(f"Kept in {output / 'sweep.json'}, drawn in {output / pipeline.PICTURE_FILE} and {pipeline.PAGE_FILE}.")
    written = sorted(path.name for path in (output / pipeline.POINTS_FOLDER).glob("*"))
    if written:
        say(f"Written to {output / pipeline.POINTS_FOLDER}: {', '.join(written)}")
    else:
        say("The same command with --write NAME writes a point; --write front all that are on the front.")


def tune(
    model: Model,
    output: Run = Path("lowrank-run"),
    task: Task = "fidelity",
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="What the task's metric may lose: 0.01 is a point of it.")
    ] = 0.01,
    size: SizeOption = None,
    latency: LatencyOption = None,
    trials: Annotated[int, typer.Option(min=1, help="How many, those of a study that goes on among them.")] = 30,
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no trial after so many minutes.")] = None,
    heal: Annotated[float, typer.Option(min=0, help="Also try up to so many minutes of healing.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of what is proposed.")] = 0,
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
    """Search keep ratio, structures, type and healing for the smallest file within limits (Optuna)."""
    from lowrank import pipeline
    from lowrank.backends import Opening
    from lowrank.report.terminal.comparison import trials_table

    with resumable(output), progress_bars() as track:
        found = pipeline.tune(
            model,
            output=output,
            task=task,
            max_drop=max_drop,
            size=budget_of(None, UnitName.params, None, None, size),
            latency=budget_of(None, UnitName.params, None, latency),
            trials=trials,
            minutes=minutes,
            heal=heal,
            seed=seed,
            settings=pipeline.Settings(**changes_of(calib, column, samples, include, exclude, targets)),
            opening=Opening(arch=arch, config=config, tokenizer=tokenizer, unsafe_pickle=unsafe_pickle),
            execution=pipeline.Execution(resume=resume),
            track=track,
        )
    if as_json:
        print_json(found.to_json())
    else:
        print_table(trials_table(found))
        if found.exhausted:
            say("Nothing else is left to try.")
        say(f"Looked for {found.goal} within {found.limits.told()}; all trials are in {output / 'tune.json'}.")
    if found.best is None:
        complain(_missed(found))
        raise typer.Exit(1)
    if not as_json:
        say(
            f"Best is trial {found.best.number}, which {output} holds now: lowrank compress {model} "
            f"{found.best.flags()} makes it."
        )


def _missed(found: Any) -> str:
    """What to say where no trial is within the limits."""
    near = found.nearest
    if near is None:
        return "no trial could be measured; the table says why"
    return (
        f"no trial of {len(found.trials)} is within {found.limits.told()}; the nearest is trial {near.number} "
        f"({near.flags()}): {near.bytes:,} bytes, {near.ms:.2f} ms, drop {near.drop:.4f} "
        f"({near.verdict(found.limits)}). Allow more, or go on with --resume and more --trials"
    )
