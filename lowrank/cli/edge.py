"""The command line's verbs for what runs elsewhere: export and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank.cli.options import (
    Arch,
    Calib,
    Column,
    Config,
    DtypeName,
    Elastic,
    Exclude,
    Include,
    Model,
    ProfileOption,
    Quantize,
    Targets,
    UnsafePickle,
    WithPast,
)
from lowrank.cli.parse import changes_of, keeps_of, target_of
from lowrank.report.terminal.terminal import progress_bars, say


def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for model.onnx.")],
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set.")] = 20,
    arch: Arch = None,
    config: Config = None,
    unsafe_pickle: UnsafePickle = False,
    with_past: WithPast = False,
    profile: ProfileOption = None,
    quantize: Quantize = DtypeName.none,
    elastic: Elastic = None,
    ort: Annotated[
        bool,
        typer.Option("--ort", help="Also as .ort, with its operators for a minimal build; of a run or .onnx, too."),
    ] = False,
    adapter_inputs: Annotated[
        bool, typer.Option("--adapter-inputs", help="A graph that takes a LoRA at every run; of a run folder, too.")
    ] = False,
    hub: Annotated[
        bool,
        typer.Option("--hub", help="A run as one folder for transformers, optimum and transformers.js: with onnx/."),
    ] = False,
    calib: Calib = None,
    column: Column = None,
) -> None:
    """Write the dense model to ONNX the same way as a compressed one, for comparison; or other forms of a result."""
    from lowrank import pipeline
    from lowrank.backends import Opening
    from lowrank.backends.onnx.save import file_size

    opening = Opening(arch=arch, config=config, unsafe_pickle=unsafe_pickle)
    if hub:
        if adapter_inputs or ort or elastic or with_past or profile:
            raise typer.BadParameter("--hub takes the graphs of a run; leave the other forms out, but for --quantize")
        for made in pipeline.export_hub(model, output, dtypes=[target_of(None, quantize).dtype], remark=say):
            say(f"{made} ({sum(p.stat().st_size for p in made.parent.glob(f'{made.name}*')):,} bytes)")
        return
    if adapter_inputs:
        if ort or elastic or with_past or profile or quantize is not DtypeName.none:
            raise typer.BadParameter("--adapter-inputs is a graph of its own; leave the other forms out")
        path, count = pipeline.export_adapter_inputs(model, output, opening=opening)
        say(f"{path} ({path.stat().st_size:,} bytes): {count} layers take an adapter, none of them needs one")
        return
    graph = pipeline.graph_of(model) if ort else None
    if graph is not None:
        _write_ort(graph, output)
        return
    target = target_of(profile, quantize)
    if elastic is not None:
        if with_past:
            raise typer.BadParameter("--with-past is for one size; leave --elastic out")
        settings = pipeline.Settings(calib=calib, column=column)
        with progress_bars() as track:
            made = pipeline.export_elastic(
                model,
                keeps_of(elastic),
                output,
                settings=settings,
                opening=opening,
                target=target,
                opset=opset,
                track=track,
            )
        for keep, path in made.items():
            say(f"{path} ({path.stat().st_size:,} bytes), keep ratio {keep:g}")
        shared = output / pipeline.ELASTIC_DATA
        say(f"{shared} ({shared.stat().st_size:,} bytes), the numbers of all of them")
        return
    if calib is not None or column is not None:
        raise typer.BadParameter("--calib and --column choose ranks, which only --elastic needs")
    path = pipeline.export(model, output, opening=opening, opset=opset, with_past=with_past, target=target, remark=say)
    say(f"{path} ({file_size(path):,} bytes), " + ("rounded." if target.is_rounded else "same outputs as torch."))
    if ort:
        _write_ort(path, output)


def _write_ort(graph: Path, output: Path) -> None:
    from lowrank import pipeline

    for path in pipeline.export_ort(graph, output):
        say(f"{path} ({path.stat().st_size:,} bytes)")


def bench(
    model: Model,
    table: Annotated[Path | None, typer.Option("--table", help="Write what this machine takes, as JSON.")] = None,
    script: Annotated[
        Path | None, typer.Option("--script", help="Write a script that measures another machine without lowrank.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens in a sample.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads inside an operator.")] = 1,
    include: Include = None,
    exclude: Exclude = None,
    targets: Targets = None,
    arch: Arch = None,
    config: Config = None,
    unsafe_pickle: UnsafePickle = False,
    profile: ProfileOption = None,
    quantize: Quantize = DtypeName.none,
) -> None:
    """Time the operators that a model can be made of, for compress --latency."""
    from lowrank import pipeline
    from lowrank.backends import Opening

    if table is None and script is None:
        raise typer.BadParameter("give --table FILE to measure here, or --script FILE to measure elsewhere")
    with progress_bars() as track:
        told = pipeline.bench_table(
            model,
            table=table,
            script=script,
            target=target_of(profile, quantize),
            tokens=tokens,
            threads=threads,
            settings=pipeline.Settings(**changes_of(None, None, None, include, exclude, targets)),
            opening=Opening(arch=arch, config=config, unsafe_pickle=unsafe_pickle),
            track=track,
        )
    if table is not None:
        say(f"{table}: {told['operators']} operators; the dense model takes {told['whole_ms']:.2f} ms")
        same = "" if quantize is DtypeName.none else f" --quantize {quantize.value}"
        say(f"Next: lowrank compress {model} --latency 0.5 --table {table}{same}")
    if script is not None:
        say(f"{script}: {told['operators']} operators; run it there: python {script.name} table.json [dense.onnx]")
