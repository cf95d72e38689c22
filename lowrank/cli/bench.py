"""`lowrank bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank.cli.options import DataOptions, Model, OpeningOptions, OutputOptions
from lowrank.cli.verb import Option, Verb
from lowrank.report.terminal.terminal import progress_bars, say


@Verb
def bench(
    *,
    model: Model,
    table: Annotated[Path | None, Option("FILE", "Write what this machine takes, as JSON.")] = None,
    script: Annotated[Path | None, Option("FILE", "Write a script that measures without lowrank.")] = None,
    tokens: Annotated[int, Option("N", "Tokens in a sample.", least=1)] = 128,
    threads: Annotated[int, Option("N", "Threads inside an operator.", least=1)] = 1,
    data: Annotated[DataOptions, "include", "exclude", "targets"],
    opening: Annotated[OpeningOptions, "arch", "config", "unsafe_pickle"],
    result: Annotated[OutputOptions, "profile", "engine", "quantize"],
) -> None:
    """Time the operators of a model, for compress --speedup."""
    from lowrank import pipeline

    if table is None and script is None:
        raise typer.BadParameter("give --table FILE to measure here, or --script FILE to measure elsewhere")
    with progress_bars() as track:
        figures = pipeline.bench_table(
            model,
            table=table,
            script=script,
            target=result.target(),
            dtypes=pipeline.BOTH if result.quantize is None else (result.target().dtype,),
            tokens=tokens,
            threads=threads,
            settings=data.settings(),
            opening=opening.opening(),
            track=track,
        )
    if table is not None:
        say(f"{table}: {figures['operators']} operators; the dense model takes {figures['whole_ms']:.2f} ms")
        goal = "--speedup 3" if result.quantize is None else f"--latency 0.5 --quantize {result.quantize}"
        say(f"Next: lowrank compress {model} {goal} --table {table}")
    if script is not None:
        say(f"{script}: {figures['operators']} operators; run it there: python {script.name} table.json [dense.onnx]")
