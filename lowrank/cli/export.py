"""`lowrank export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowrank.cli.options import DataOptions, Model, OpeningOptions, OutputOptions, ratios_of
from lowrank.cli.verb import OUTPUT, Option, Verb
from lowrank.report.terminal.terminal import progress_bars, say


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Other forms than one dense graph."""

    elastic: Annotated[str | None, Option("RATIOS", "A small graph for each, one data file for all.", OUTPUT)] = None
    ort: Annotated[bool, Option("", "Also as .ort, for small runtimes.")] = False
    adapter_inputs: Annotated[bool, Option("", "A graph that takes a LoRA at every run.")] = False
    hub: Annotated[bool, Option("", "A run as a folder for transformers.")] = False
    to: Annotated[
        Literal["pt2", "executorch", "litert"] | None,
        Option("FORM", "Not ONNX: pt2, executorch or litert."),
    ] = None


@Verb
def export(
    *,
    model: Model,
    output: Annotated[Path, Option("FOLDER", "Folder for model.onnx.", names=("--output", "-o"))],
    opset: Annotated[
        int | None, Option("N", "ONNX operator set, 18 to 23; 20 if not given.", least=18, most=23)
    ] = None,
    result: Annotated[OutputOptions, "quantize", "with_past", "profile", "engine"],
    forms: Forms,
    data: Annotated[DataOptions, "calib", "calib_only", "column"],
    opening: Annotated[OpeningOptions, "arch", "config", "unsafe_pickle"],
) -> None:
    """Write a model to ONNX, or a result in another form.

    A dense model is written the same way as a compressed one, for comparison. --calib shows the shapes of inputs
    that the model does not tell, and is what --quantize rounds on. An .onnx file, or a run folder, is rounded with
    --quantize and fused with --profile ort; --ort, --adapter-inputs, --hub and --to take a run folder, too.
    """
    from lowrank import pipeline

    how, target = opening.opening(), result.target()
    others = [forms.ort, forms.elastic, result.with_past, result.profile or result.engine]
    if data.changes() and (forms.hub or forms.adapter_inputs):
        raise typer.BadParameter("--calib and --column are for a graph that is written anew; leave them out")
    if forms.to is not None:
        if forms.hub or forms.adapter_inputs or any(others) or target.is_rounded or data.changes() or opset is not None:
            raise typer.BadParameter("--to is a form of its own, of the module as it is; leave the other options out")
        path = pipeline.export_torch(model, output, forms.to, opening=how, remark=say)
        say(f"{path} ({path.stat().st_size:,} bytes)")
        return
    if forms.hub:
        if forms.adapter_inputs or any(others):
            raise typer.BadParameter("--hub takes the graphs of a run; leave the other forms out, but for --quantize")
        if opset is not None:
            raise typer.BadParameter(
                "--hub takes the graphs of a run with the operator set that they have; leave --opset out"
            )
        for path in pipeline.export_hub(model, output, dtypes=[target.dtype], remark=say):
            say(f"{path} ({sum(p.stat().st_size for p in path.parent.glob(f'{path.name}*')):,} bytes)")
        return
    if forms.adapter_inputs:
        if any(others) or target.is_rounded:
            raise typer.BadParameter("--adapter-inputs is a graph of its own; leave the other forms out")
        path, count = pipeline.export_adapter_inputs(model, output, opening=how, opset=opset)
        say(f"{path} ({path.stat().st_size:,} bytes): {count} layers take an adapter, none of them needs one")
        return
    as_it_is = forms.ort and not target.is_rounded and not result.with_past and not (result.profile or result.engine)
    graph = pipeline.graph_of(model) if as_it_is else None
    if graph is not None and opset is not None:
        raise typer.BadParameter(f"{graph} is a graph already and keeps its operator set; leave --opset out")
    if graph is None and forms.elastic is not None:
        if result.with_past:
            raise typer.BadParameter("--with-past is for one size; leave --elastic out")
        _export_elastic(model, output, forms.elastic, opset, result, data, opening)
        return
    if graph is None:
        from lowrank.backends.onnx.save import file_size

        graph = pipeline.export(
            model,
            output,
            opening=how,
            opset=opset,
            with_past=result.with_past,
            target=target,
            settings=data.settings() if data.changes() else None,
            remark=say,
        )
        say(f"{graph} ({file_size(graph):,} bytes){', rounded' if target.is_rounded else ''}.")
    if forms.ort:
        for path in pipeline.export_ort(graph, output):
            say(f"{path} ({path.stat().st_size:,} bytes)")


def _export_elastic(
    model: str,
    output: Path,
    ratios: str,
    opset: int | None,
    result: OutputOptions,
    data: DataOptions,
    opening: OpeningOptions,
) -> None:
    """Write a graph for each keep ratio, and say what was written."""
    from lowrank import pipeline

    with progress_bars() as track:
        paths = pipeline.export_elastic(
            model,
            ratios_of(ratios),
            output,
            settings=data.settings(),
            opening=opening.opening(),
            target=result.target(),
            opset=opset,
            track=track,
        )
    for keep, path in paths.items():
        say(f"{path} ({path.stat().st_size:,} bytes), keep ratio {keep:g}")
    shared = output / pipeline.ELASTIC_DATA
    say(f"{shared} ({shared.stat().st_size:,} bytes), the numbers of all of them")
