"""The options that several subcommands share, each written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from lowrank.core.selection.registry import SELECTORS
from lowrank.core.structures import STRUCTURES

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    SelectorName = str
else:
    # A choice of what there is, for the parser and for completion.
    SelectorName = StrEnum("SelectorName", {name: name for name in SELECTORS})


class UnitName(StrEnum):
    """What a budget can be a share of."""

    params = "params"
    bytes = "bytes"
    macs = "macs"


class Initial(StrEnum):
    """What an adapter begins as."""

    discarded = "discarded"
    zero = "zero"


class ProfileName(StrEnum):
    """What graphs are for."""

    portable = "portable"
    ort = "ort"


class DtypeName(StrEnum):
    """What weights are stored in."""

    none = "none"
    fp16 = "fp16"
    int8 = "int8"
    int4 = "int4"
    nbits4 = "nbits4"


class Fold(StrEnum):
    """What becomes of an adapter."""

    no = "no"
    exact = "exact"
    rank = "rank"


STRUCTURE_NAMES = tuple(STRUCTURES)[1:]
BUDGET, DATA, WEIGHTS, OUTPUT = "Budget", "Data", "Which weights", "Output and engine"
HEALING, LARGE, EXPERTS = "Healing", "Large models", "For experts"
"""The panels of options in a help text; what has none is what most people need, and stands first."""

TARGET_NAMES = ("projections", "head", "embeddings", "conv", "all")


def _one_of(names: tuple[str, ...], incomplete: str) -> list[str]:
    """Names with commas between them, of which the last one is completed."""
    front, comma, start = incomplete.rpartition(",")
    taken = front.split(",")
    return [f"{front}{comma}{name}" for name in names if name.startswith(start) and name not in taken]


def complete_targets(incomplete: str) -> list[str]:
    """Kinds of layers; for the shell."""
    return _one_of(TARGET_NAMES, incomplete)


def complete_structures(incomplete: str) -> list[str]:
    """Structures; for the shell."""
    return _one_of(STRUCTURE_NAMES, incomplete)


Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, or a .safetensors, .pt, .pth, .bin, .pt2 or .onnx file.")
]
Run = Annotated[Path, typer.Option("--output", "-o", help="The run folder.")]
Calib = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this form in every version
    typer.Option(metavar="FILE", help="Calibration data: .txt, .tsv, .csv, .jsonl, .npz, or none."),
]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Columns of a table or keys of .jsonl, with commas.", rich_help_panel=DATA),
]
Samples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Calibration samples at most (4096).", rich_help_panel=DATA)
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Only these: name, glob or re:regex. Repeatable.", rich_help_panel=WEIGHTS),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Not these: name, glob or re:regex. Repeatable.", rich_help_panel=WEIGHTS),
]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        help="projections, head, embeddings, conv or all, with commas.",
        autocompletion=complete_targets,
        rich_help_panel=WEIGHTS,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="package.module:factory that builds the dense module.", rich_help_panel=EXPERTS),
]
Config = Annotated[
    str | None,
    typer.Option(
        help="run.yaml: a file with any of these options. Or config.json: how to build the model of a state dict.",
        rich_help_panel=EXPERTS,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="tokenizer.json or its folder, if the model has none.", rich_help_panel=DATA),
]
Lora = Annotated[
    str | None,
    typer.Option(
        "--lora", metavar="FOLDER", help="A LoRA from PEFT to merge into the model first.", rich_help_panel=EXPERTS
    ),
]
WithPast = Annotated[
    bool,
    typer.Option(
        "--with-past",
        help="Also write a causal LM with its cache.",
        rich_help_panel=OUTPUT,
    ),
]
ProfileOption = Annotated[
    Optional[ProfileName],  # noqa: UP045 - typer reads this form in every version
    typer.Option("--profile", metavar="NAME", help="portable, or ort: ONNX Runtime alone.", rich_help_panel=OUTPUT),
]
Quantize = Annotated[
    DtypeName,
    typer.Option("--quantize", metavar="TYPE", help="Store weights as fp16, int8, int4 or nbits4."),
]
Elastic = Annotated[
    str | None,
    typer.Option(
        "--elastic",
        help="Keep ratios with commas: a small graph for each, over one file of numbers.",
        rich_help_panel=OUTPUT,
    ),
]
UnsafePickle = Annotated[
    bool,
    typer.Option("--unsafe-pickle", help="Let a model file run its own code.", rich_help_panel=EXPERTS),
]
Plots = Annotated[
    Path | None,
    typer.Option(
        "--plots",
        help="Also draw every plot of report.html to this folder, as PNG and SVG (extra: plot).",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT)]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", metavar="SHARE", help="Share of the targeted weights to keep: 0.3."),
]
UnitOption = Annotated[
    UnitName,
    typer.Option("--of", metavar="UNIT", help="What --budget counts: params, bytes or macs.", rich_help_panel=BUDGET),
]
ErrorOption = Annotated[
    float | None,
    typer.Option(
        "--error", metavar="ERROR", help="Relative output error of each weight: 0.05.", rich_help_panel=BUDGET
    ),
]
Timing = Annotated[
    bool,
    typer.Option(
        "--timing/--no-timing",
        " /--no-latency",
        help="Time both models in ONNX Runtime.",
        rich_help_panel=OUTPUT,
    ),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="TIME",
        help="Time for 128 tokens: 0.5 of the dense model's, or 12ms.",
        rich_help_panel=BUDGET,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Size of model.onnx: 8MB, or 0.2 of the original's.",
        rich_help_panel=BUDGET,
    ),
]
TableOption = Annotated[
    Path | None,
    typer.Option(
        "--table", metavar="FILE", help="Timings of another machine, from lowrank bench.", rich_help_panel=BUDGET
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="What it is measured on: fidelity, sts:FILE, classify:FILE, lm:FILE, images:FOLDER, retrieval:FOLDER, "
        "package.module:function, mteb:NAME, lm_eval:NAME. Repeatable.",
        rich_help_panel=BUDGET,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="What each --task may lose: 0.01 is a point of its metric, or 1 % of a perplexity. Finds the keep ratio.",
        rich_help_panel=BUDGET,
    ),
]
SelectorOption = Annotated[
    SelectorName,
    typer.Option(
        "--selector", metavar="NAME", help=f"How ranks are chosen: {', '.join(SELECTORS)}.", rich_help_panel=EXPERTS
    ),
]
Multiple = Annotated[
    int, typer.Option(min=1, metavar="N", help="Round ranks down to a multiple of this.", rich_help_panel=EXPERTS)
]
Seed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Random seed of the order of the samples.", rich_help_panel=HEALING)
]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.", rich_help_panel=HEALING)]
Adapter = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="RANK",
        help="Train a LoRA of this rank beside each layer instead.",
        rich_help_panel=HEALING,
    ),
]
AdapterInit = Annotated[
    Initial,
    typer.Option(metavar="START", help="Start it from discarded directions, or from zero.", rich_help_panel=HEALING),
]
FoldOption = Annotated[
    Fold,
    typer.Option(
        "--fold",
        metavar="HOW",
        help="Fold the adapter in: no, exact, or rank (ranks stay).",
        rich_help_panel=HEALING,
    ),
]
Structures = Annotated[
    str | None,
    typer.Option(
        help="Only these, with commas: two_factor, pivoted, product, rotary, neurons, shared, spatial, and with --size "
        "residual. Default: all.",
        autocompletion=complete_structures,
        rich_help_panel=EXPERTS,
    ),
]


Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory to use: 4GB. Larger models are streamed.",
        rich_help_panel=LARGE,
    ),
]
Stream = Annotated[
    Optional[bool],  # noqa: UP045 - typer reads this form in every version
    typer.Option(
        "--stream/--no-stream",
        help="Read weight by weight. Default: if large.",
        rich_help_panel=LARGE,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="URL", help="Use the workers of a Dask cluster. Streams.", rich_help_panel=LARGE
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=LARGE)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how long and how much, and stop.", rich_help_panel=LARGE)]
