"""What the command line takes: the options that several subcommands share, and what becomes of them."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from lowrank.core.selection.registry import SELECTORS
from lowrank.core.structures import STRUCTURES

if TYPE_CHECKING:
    from lowrank.core.budget import Budget
    from lowrank.core.selection.selector import Selector
    from lowrank.edge.target import Dtype, Profile, Target
    from lowrank.pipeline import Training
    from lowrank.pipeline.execution import Execution


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
if TYPE_CHECKING:
    SelectorName = str
else:
    # A choice of what there is, for the parser and for completion.
    SelectorName = StrEnum("SelectorName", {name: name for name in SELECTORS})
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


def changes_of(
    calib: str | None,
    column: str | None,
    samples: int | None,
    include: list[str] | None,
    exclude: list[str] | None,
    targets: str | None,
) -> dict[str, Any]:
    """The settings that the command line names; the others stay what they are."""
    named = {
        "calib": calib,
        "column": column,
        "samples": samples,
        "include": tuple(include) if include else None,
        "exclude": tuple(exclude) if exclude else None,
        "targets": tuple(part.strip() for part in targets.split(",")) if targets is not None else None,
    }
    return {name: value for name, value in named.items() if value is not None}


def training_of(
    minutes: float | None,
    steps: int | None,
    seed: int,
    device: str,
    adapter: int | None,
    initial: Initial,
    fold: Fold,
) -> Training | None:
    """How to heal, from what the command line says; None if it does not say for how long."""
    from lowrank.pipeline import Training

    if fold is not Fold.no and adapter is None:
        raise typer.BadParameter("--fold is for an --adapter")
    if minutes is None:
        if adapter is not None:
            raise typer.BadParameter("--adapter is trained: say for how long with --heal MINUTES")
        return None
    return Training(
        minutes=minutes,
        steps=steps,
        seed=seed,
        device=device,
        adapter=adapter,
        initial=initial.value,  # pyright: ignore[reportArgumentType]
        fold=fold.value,  # pyright: ignore[reportArgumentType]
    )


def target_of(profile: ProfileName | None, quantize: DtypeName) -> Target:
    """What graphs are written for, from what the command line says."""
    from lowrank.edge.target import Target

    dtypes: dict[DtypeName, Dtype] = {
        DtypeName.none: "float32",
        DtypeName.fp16: "float16",
        DtypeName.int8: "int8",
        DtypeName.int4: "int4",
        DtypeName.nbits4: "nbits4",
    }
    needed: Profile = "ort" if quantize is DtypeName.nbits4 else "portable"
    return Target(profile=profile.value if profile else needed, dtype=dtypes[quantize])  # pyright: ignore[reportArgumentType]


def keeps_of(text: str) -> list[float]:
    """Keep ratios from what the command line says."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} are no keep ratios; give numbers with commas: 0.2,0.3,0.5") from None


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


def execution_of(memory: str | None, stream: bool | None, scheduler: str | None, resume: bool) -> Execution:
    """How work is done, from what the command line says."""
    from lowrank.pipeline.execution import Execution

    if stream is False and scheduler is not None:
        raise typer.BadParameter("--scheduler streams: leave --no-stream out")
    limit = None if memory is None else int(bytes_of(memory, "--memory"))
    return Execution(memory=limit, stream=stream, scheduler=scheduler, resume=resume)


UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str, option: str = "--size") -> float:
    """A size from what the command line says: bytes, or a share of up to 1."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", text)
    try:
        if found is None:
            raise ValueError(text)
        return float(found[1]) * UNITS[found[2].upper()]
    except (KeyError, ValueError):
        example = ", or a share such as 0.2" if option == "--size" else ""
        raise typer.BadParameter(f"{option} {text}: give bytes such as 8MB or 900KiB{example}") from None


def budget_of(
    budget: float | None, of: UnitName, error: float | None, latency: str | None = None, size: str | None = None
) -> Budget | None:
    """The budget that the command line names, if it names one."""
    from lowrank.core.budget import Budget

    if sum(given is not None for given in (budget, error, latency, size)) > 1:
        raise typer.BadParameter("give one of --budget, --error, --latency and --size")
    if size is not None:
        return Budget.size(bytes_of(size))
    if latency is not None:
        number, unit = (latency[:-2], "milliseconds") if latency.endswith("ms") else (latency, "latency")
        try:
            limit = float(number)
        except ValueError:
            raise typer.BadParameter(f"--latency {latency}: give a share such as 0.5, or a time such as 12ms") from None
        return Budget(unit, limit)
    if budget is not None:
        return Budget(of.value, budget)  # pyright: ignore[reportArgumentType]
    return Budget.error(error) if error is not None else None


def chosen_selector(name: str, multiple: int, structures: str | None) -> Selector:
    """The policy that the command line names."""
    from lowrank.core.selection.knapsack import Knapsack
    from lowrank.core.selection.registry import selector_type

    if structures is None:
        return selector_type(name)(multiple=multiple)
    if name != "knapsack":
        raise typer.BadParameter(f"--structures is for the knapsack; {name} ranks are those of two factors")
    wanted = tuple(part.strip() for part in structures.split(","))
    unknown = [part for part in wanted if part not in STRUCTURES]
    if unknown:
        raise typer.BadParameter(f"there is no structure {unknown[0]!r}; there is {', '.join(STRUCTURES)}")
    return Knapsack(multiple=multiple, structures=wanted)
