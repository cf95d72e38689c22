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
    typer.Option(
        help="Calibration data: .txt, .tsv, .csv, .jsonl (.gz too), a sample a line; .npz of inputs; or the word none."
    ),
]
Column = Annotated[str | None, typer.Option(help="Column of a table, or key of .jsonl; several with commas.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration samples at most (4096).")]
Include = Annotated[list[str] | None, typer.Option(help="Only weights of this name, glob or re:regex. Repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Not weights of this name, glob or re:regex. Repeatable.")]
Targets = Annotated[
    str | None,
    typer.Option(
        help="projections (in attention and feed-forward blocks), head, embeddings, conv, all; several with commas.",
        autocompletion=complete_targets,
    ),
]
Arch = Annotated[str | None, typer.Option(help="package.module:factory that builds the dense module of a state dict.")]
Config = Annotated[
    str | None,
    typer.Option(
        help="run.yaml: a file with any of these options. Or config.json: how to build the model of a state dict."
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="tokenizer.json, or a folder with a tokenizer, for a model that has none beside it.")
]
Lora = Annotated[
    str | None, typer.Option("--lora", help="A LoRA that PEFT saved: merged into the model before anything else.")
]
WithPast = Annotated[
    bool, typer.Option("--with-past", help="Also write model_with_past.onnx: a causal LM with its key-value cache.")
]
ProfileOption = Annotated[
    Optional[ProfileName],  # noqa: UP045 - typer reads this form in every version
    typer.Option("--profile", help="Graphs for any runtime, or with ONNX Runtime's own operators."),
]
Quantize = Annotated[
    DtypeName,
    typer.Option("--quantize", help="Store weights in fewer bits. nbits4: operators for one token at a time."),
]
Elastic = Annotated[
    str | None,
    typer.Option("--elastic", help="Keep ratios with commas: a small graph for each, over one file of numbers."),
]
UnsafePickle = Annotated[
    bool, typer.Option("--unsafe-pickle", help="Let a model file run its own code while it is read.")
]
Plots = Annotated[
    Path | None,
    typer.Option("--plots", help="Also draw every plot of report.html to this folder, as PNG and SVG (extra: plot)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", help="Share of the targeted weights to keep: 0.3 (of their parameters, unless --of)."),
]
UnitOption = Annotated[UnitName, typer.Option("--of", help="What --budget is a share of.")]
ErrorOption = Annotated[
    float | None, typer.Option("--error", help="Relative output error that each weight may have: 0.05.")
]
Timing = Annotated[
    bool,
    typer.Option(
        "--timing/--no-timing",
        " /--no-latency",
        help="Time the dense and the compressed model in ONNX Runtime.",
    ),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        help="Time that the model may take for 128 tokens: 0.5 of the dense model's, or 12ms. Measured here.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", help="What model.onnx may have: 8MB, or 0.2 of the original's bytes. Chooses types, too."),
]
TableOption = Annotated[
    Path | None, typer.Option("--table", help="Timings of another machine, for --latency; see lowrank bench.")
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="What it is measured on: fidelity, sts:FILE, classify:FILE, lm:FILE, images:FOLDER, retrieval:FOLDER, "
        "package.module:function, mteb:NAME, lm_eval:NAME. Repeatable.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="What each --task may lose: 0.01 is a point of its metric, or 1 % of a perplexity. Finds the keep ratio.",
    ),
]
if TYPE_CHECKING:
    SelectorName = str
else:
    # A choice of what there is, for the parser and for completion.
    SelectorName = StrEnum("SelectorName", {name: name for name in SELECTORS})
SelectorOption = Annotated[SelectorName, typer.Option("--selector", help="How ranks are chosen.")]
Multiple = Annotated[int, typer.Option(min=1, help="Round ranks down to a multiple of this.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of the order of the samples.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")]
Adapter = Annotated[
    int | None, typer.Option(min=1, help="Freeze the model, and train a LoRA residual of this rank beside each layer.")
]
AdapterInit = Annotated[
    Initial, typer.Option(help="What an adapter begins as: the best of what truncation left out, or nothing.")
]
FoldOption = Annotated[
    Fold, typer.Option("--fold", help="Keep the adapter by itself, or fold it in: exact (ranks grow) or to the rank.")
]
Structures = Annotated[
    str | None,
    typer.Option(
        help="Only these, with commas: two_factor, pivoted, product, rotary, neurons, shared, spatial, and with --size "
        "residual. Default: all.",
        autocompletion=complete_structures,
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
        help="Memory that it may take: 4GB. A Hugging Face folder that needs more is streamed.",
    ),
]
Stream = Annotated[
    Optional[bool],  # noqa: UP045 - typer reads this form in every version
    typer.Option("--stream/--no-stream", help="Read a Hugging Face folder weight by weight. Default: if it is large."),
]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="A Dask cluster whose workers do it: tcp://host:8786. Streams.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted or killed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and stop.")]


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
