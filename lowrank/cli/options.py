"""The options of the command line, each written once, and what the library takes for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowrank.cli.verb import BUDGET, DATA, EXPERTS, HEALING, LARGE, OUTPUT, WEIGHTS, Option
from lowrank.core.budget import Budget
from lowrank.core.cost import Unit
from lowrank.core.selection.registry import SELECTORS, selector_type
from lowrank.core.structures import STRUCTURES
from lowrank.core.weight import TARGETS
from lowrank.edge.target import DTYPES, ENGINES, Profile, Target
from lowrank.healing.training import Fold, Initial

if TYPE_CHECKING:
    from lowrank.backends import Opening
    from lowrank.core.selection.selector import Selector
    from lowrank.pipeline import Execution, Settings, Training

STRUCTURE_NAMES = tuple(STRUCTURES)[1:]
BYTES = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def words_of(text: str) -> list[str]:
    """Words with commas between them."""
    return [part.strip() for part in text.split(",")]


def ratios_of(text: str) -> list[float]:
    """Keep ratios with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} are no keep ratios; give numbers with commas: 0.2,0.3,0.5") from None


def bytes_of(text: str, option: str, example: str = "") -> float:
    """A number of bytes with or without a unit."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", text)
    try:
        if match is None:
            raise ValueError(text)
        return float(match[1]) * BYTES[match[2].upper()]
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{option} {text}: give bytes such as 8MB or 900KiB{example}") from None


def memory_of(text: str) -> int:
    """A number of bytes of memory."""
    return int(bytes_of(text, "--memory"))


def size_of(text: str) -> Budget:
    """A budget of bytes, or of a share of the original's."""
    return Budget.size(bytes_of(text, "--size", ", or a share such as 0.2"))


def speedup_of(text: str) -> Budget:
    """A budget of speed."""
    try:
        return Budget.speedup(float(text.removesuffix("x")))
    except ValueError:
        raise typer.BadParameter(f"--speedup {text}: give how many times as fast, such as 4") from None


def latency_of(text: str) -> Budget:
    """A budget of milliseconds, or of a share of the dense model's time."""
    number, unit = (text[:-2], "milliseconds") if text.endswith("ms") else (text, "latency")
    try:
        limit = float(number)
    except ValueError:
        raise typer.BadParameter(f"--latency {text}: give a share such as 0.5, or a time such as 12ms") from None
    return Budget(unit, limit)


def completed(names: Iterable[str]) -> Callable[[str], list[str]]:
    """For the shell: completes the last of several names with commas between them."""

    def complete(incomplete: str) -> list[str]:
        front, comma, start = incomplete.rpartition(",")
        taken = front.split(",")
        return [f"{front}{comma}{name}" for name in names if name.startswith(start) and name not in taken]

    return complete


Model = Annotated[str, Option("", "Hugging Face folder, .safetensors, .pt, .onnx, ...", is_argument=True)]
Run = Annotated[Path, Option("", "The folder of a finished run.", is_argument=True)]
LATENCY = Option("TIME", "Time of 128 tokens: 12ms, or 0.5 of the original's.", BUDGET, parse=latency_of)
SPEEDUP = Option("TIMES", "So many times as fast, types chosen too: 4.", BUDGET, parse=speedup_of)
SIZE = Option("SIZE", "Size of model.onnx: 8MB, or 0.2 of the original's.", BUDGET, parse=size_of)


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What the result may cost, or how far it may differ."""

    budget: Annotated[float | None, Option("SHARE", "Share of the targeted weights to keep: 0.3.")] = None
    of: Annotated[
        Unit, Option("UNIT", "--budget counts params (default), bytes or macs.", BUDGET, show_default=False)
    ] = "params"
    error: Annotated[float | None, Option("ERROR", "Relative output error of each weight: 0.05.", BUDGET)] = None
    speedup: Annotated[Budget | None, SPEEDUP] = None
    latency: Annotated[Budget | None, LATENCY] = None
    size: Annotated[Budget | None, SIZE] = None
    task: Annotated[list[str] | None, Option("TASK", "Measure fidelity, sts:FILE, ... Repeatable.", BUDGET)] = None
    max_drop: Annotated[float | None, Option("DROP", "What each --task may lose: 0.01 is one point.", BUDGET)] = None
    table: Annotated[Path | None, Option("FILE", "Timings of another machine, by lowrank bench.", BUDGET)] = None
    plan: Annotated[Path | None, Option("FILE", "Follow this plan.json, perhaps edited.", BUDGET)] = None

    def limit(self) -> Budget | None:
        """The budget that is named, if one is."""
        share = None if self.budget is None else Budget(self.of, self.budget)
        error = None if self.error is None else Budget.error(self.error)
        speed, size = self.speedup, self.size
        if speed is not None and size is not None:
            speed, size = Budget.speedup(speed.limit, size.limit), None
        named = [budget for budget in (share, error, speed, self.latency, size) if budget is not None]
        if len(named) > 1:
            raise typer.BadParameter("give one of --budget, --error, --speedup, --latency and --size")
        return named[0] if named else None


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How ranks are chosen, and factors made."""

    selector: Annotated[
        str,
        Option(
            "NAME", f"How ranks are chosen: {', '.join(SELECTORS)}.", EXPERTS, choices=SELECTORS, show_default=False
        ),
    ] = "knapsack"
    multiple: Annotated[int, Option("N", "Ranks are multiples of N.", EXPERTS, least=1, show_default=False)] = 1
    structures: Annotated[
        list[str] | None,
        Option(
            "NAMES",
            "Only these structures, with commas.",
            EXPERTS,
            parse=words_of,
            complete=completed(STRUCTURE_NAMES),
        ),
    ] = None
    refit: Annotated[bool, Option("", "Fit each factor to its inputs.", EXPERTS)] = True
    refine: Annotated[bool, Option("", "Then fit blocks as a whole.", EXPERTS)] = True

    def policy(self, default: Iterable[str] | None = None) -> Selector:
        """The selector.

        Args:
            default: the structures that it may choose if none is named.
        """
        from lowrank.core.selection.knapsack import Knapsack

        wanted = self.structures or default
        if wanted is None:
            return selector_type(self.selector)(multiple=self.multiple)
        if self.selector != "knapsack":
            raise typer.BadParameter(
                f"--structures is for the knapsack; {self.selector} ranks are those of two factors"
            )
        unknown = [name for name in wanted if name not in STRUCTURES]
        if unknown:
            raise typer.BadParameter(f"there is no structure {unknown[0]!r}; there is {', '.join(STRUCTURES)}")
        return Knapsack(multiple=self.multiple, structures=tuple(wanted))


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which weights are looked at, and on what data; None leaves a setting as it is."""

    calib: Annotated[str | None, Option("FILE", "Data: .txt, .csv, .jsonl, .npz; or self, none.")] = None
    calib_only: Annotated[bool | None, Option("", "No built-in text beside it.", DATA, names=("--calib-only",))] = None
    column: Annotated[str | None, Option("NAMES", "Columns of a table or keys of .jsonl, with commas.", DATA)] = None
    samples: Annotated[int | None, Option("N", "Calibration samples at most (4096).", DATA, least=1)] = None
    include: Annotated[list[str] | None, Option("NAME", "Only these: name, glob or re:regex. Repeatable.", WEIGHTS)] = (
        None
    )
    exclude: Annotated[list[str] | None, Option("NAME", "Not these: name, glob or re:regex. Repeatable.", WEIGHTS)] = (
        None
    )
    targets: Annotated[
        list[str] | None,
        Option("KINDS", f"Any of {', '.join(TARGETS)}.", WEIGHTS, parse=words_of, complete=completed(TARGETS)),
    ] = None

    def changes(self) -> dict[str, Any]:
        """The settings that are named; the others stay what they are."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if "calib_only" in given:
            given["mixed"] = not given.pop("calib_only")
        return given

    def settings(self, before: Settings | None = None) -> Settings:
        """The settings that are named, and the others as they were before, or else their defaults."""
        from lowrank.pipeline import Settings
        from lowrank.pipeline.settings import NO_DATA, SELF

        settings = replace(before or Settings(), **self.changes())
        if self.calib_only and settings.calib in (None, NO_DATA, SELF):
            raise typer.BadParameter(
                "--calib-only is for text of your own, with which no built-in text is mixed then, and there is none; "
                "give it with --calib FILE, or leave --calib-only out"
            )
        return settings


@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How to build a model whose file does not say."""

    arch: Annotated[str | None, Option("NAME", "Build with package.module:factory.", EXPERTS)] = None
    config: Annotated[str | None, Option("FILE", "run.yaml, or a model's config.json.", EXPERTS)] = None
    tokenizer: Annotated[str | None, Option("PATH", "tokenizer.json or its folder, if it is missing.", DATA)] = None
    lora: Annotated[str | None, Option("FOLDER", "Merge this LoRA from PEFT first.", EXPERTS)] = None
    weights: Annotated[str | None, Option("NAME", "Of a file with several weights, these: ema.", EXPERTS)] = None
    keep_lora: Annotated[bool, Option("", "Keep the --lora as an adapter.", EXPERTS)] = False
    unsafe_pickle: Annotated[bool, Option("", "Let a model file run its own code.", EXPERTS)] = False

    def opening(self) -> Opening:
        """How to build it; a LoRA that is kept is none of it."""
        from lowrank.backends import Opening

        if self.keep_lora and self.lora is None:
            raise typer.BadParameter("--keep-lora is for a --lora")
        options = asdict(self)
        if options.pop("keep_lora"):
            options["lora"] = None
        return Opening(**options)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, where to, and what for."""

    output: Annotated[Path, Option("FOLDER", "The run folder.", names=("--output", "-o"))] = Path("lowrank-run")
    quantize: Annotated[
        str | None, Option("TYPE", f"Store weights as {', '.join([*DTYPES][1:])}, or none.", choices=DTYPES)
    ] = None
    with_past: Annotated[bool, Option("", "Also a graph with cache.", OUTPUT)] = False
    profile: Annotated[Profile | None, Option("NAME", "portable, ort, qdq, ...", OUTPUT)] = None
    engine: Annotated[
        str | None, Option("ENGINE", "openvino, web, qnn, ...", OUTPUT, names=("--for",), choices=ENGINES)
    ] = None
    timing: Annotated[
        bool,
        Option("", "Time both models.", OUTPUT, names=("--timing/--no-timing", " /--no-latency")),
    ] = True
    plots: Annotated[Path | None, Option("FOLDER", "Folder for all plots.", OUTPUT)] = None
    as_json: Annotated[bool, Option("", "Print JSON, not tables.", OUTPUT, names=("--json",))] = False

    def target(self) -> Target:
        """What graphs are written for."""
        needed: Profile = "ort" if self.quantize == "nbits4" else "portable"
        known = None if self.engine is None else ENGINES[self.engine]
        if known is not None and self.profile not in (None, known):
            raise typer.BadParameter(f"--for {self.engine} is --profile {known}; leave one of them out")
        return Target(profile=self.profile or known or needed, dtype=DTYPES[self.quantize or "none"])

    @property
    def int8(self) -> bool:
        """Whether a graph in eight bits is written beside an exact one: unless a type is named, if only `none`."""
        return self.quantize is None


@dataclass(frozen=True, kw_only=True)
class HealingOptions:
    """How the compressed model is trained."""

    heal: Annotated[float | None, Option("MINUTES", "Then train it to imitate the dense model.", least=0.01)] = None
    seed: Annotated[int, Option("N", "Seed of the order of samples.", HEALING, least=0)] = 0
    device: Annotated[str, Option("NAME", "Train on cpu, cuda or cuda:1.", HEALING)] = "cpu"
    adapter: Annotated[int | None, Option("RANK", "Train a LoRA of this rank instead.", HEALING, least=1)] = None
    initial: Annotated[
        Initial,
        Option(
            "START",
            "Start it from discarded (default) or zero.",
            HEALING,
            show_default=False,
            names=("--adapter-init",),
        ),
    ] = "discarded"
    fold: Annotated[Fold, Option("HOW", "Fold it in: no (default), exact or rank.", HEALING, show_default=False)] = "no"

    def training(self, minutes: float | None = None, steps: int | None = None) -> Training | None:
        """How to heal; None if nobody says for how long.

        Args:
            minutes: how long, in place of `heal`.
            steps: so many steps instead.
        """
        from lowrank.pipeline import Training

        if self.fold != "no" and self.adapter is None:
            raise typer.BadParameter("--fold is for an --adapter")
        options = asdict(self)
        minutes = minutes or options["heal"]
        del options["heal"]
        if minutes is not None:
            return Training(minutes=minutes, steps=steps, **options)
        if self.adapter is not None:
            raise typer.BadParameter("--adapter is trained: say for how long with --heal MINUTES")
        return None


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """In how much memory and on which machines work is done; the results are the same but for the last digits."""

    memory: Annotated[int | None, Option("SIZE", "Memory limit, such as 4GB.", LARGE, parse=memory_of)] = None
    stream: Annotated[bool | None, Option("", "Read weight by weight.", LARGE)] = None
    scheduler: Annotated[str | None, Option("URL", "Use the workers of a Dask cluster.", LARGE)] = None
    no_directions: Annotated[bool, Option("", "Less disk, but decompose twice.", LARGE)] = False
    resume: Annotated[bool, Option("", "Go on with an interrupted run.", LARGE)] = False
    dry_run: Annotated[bool, Option("", "Say how long and how much, and stop.", LARGE)] = False

    def execution(self) -> Execution:
        """How work is done."""
        from lowrank.pipeline import Execution

        if self.stream is False and self.scheduler is not None:
            raise typer.BadParameter("--scheduler streams: leave --no-stream out")
        options = asdict(self)
        del options["dry_run"]
        options["keep_directions"] = not options.pop("no_directions")
        return Execution(**options)
