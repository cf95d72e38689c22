"""What becomes of options: from words of the command line to settings, budgets, targets and selectors."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from lowrank.core.selection.registry import SELECTORS
from lowrank.core.structures import STRUCTURES

if TYPE_CHECKING:
    from lowrank.core.budget import Budget
    from lowrank.core.selection.selector import Selector
    from lowrank.edge.target import Dtype, Profile, Target
    from lowrank.pipeline import Training
    from lowrank.pipeline.execution import Execution
if TYPE_CHECKING:
    SelectorName = str
else:
    # A choice of what there is, for the parser and for completion.
    SelectorName = StrEnum("SelectorName", {name: name for name in SELECTORS})
from lowrank.cli.options import DtypeName, Fold, Initial, ProfileName, UnitName


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
