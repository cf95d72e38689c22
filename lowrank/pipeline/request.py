"""Request: what `compress` is asked for, checked before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

from lowrank.artifacts import read_json
from lowrank.backends import Backend, is_streamed
from lowrank.core.budget import TIMED, Budget
from lowrank.core.plan import entries_of
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.selector import Selector
from lowrank.core.selection.timings import Timings
from lowrank.core.structures import structures
from lowrank.edge.target import Target
from lowrank.errors import HealingError, LowRankError
from lowrank.healing.training import Training, check_device, check_healable
from lowrank.parallel import processes
from lowrank.pipeline.budgets.operator_times import check_table, read_table
from lowrank.pipeline.budgets.quality_drop import check_drop
from lowrank.pipeline.session import Work, WorkOptions

PlanSource = Literal["share", "time", "size", "drop"]
"""How a plan is found: by what is predicted, by a table of times, by writing files, by measuring."""
SOURCES: dict[str, PlanSource] = {**dict.fromkeys(TIMED, "time"), "size": "size"}
"""Of budgets whose plan is not found by what is predicted."""
SAME_CHANNELS = tuple(s.name for s in structures() if s.keeps_channels and not s.is_dense)
"""Structures after which a layer reads and gives what it did before."""
FEW_BITS = tuple(s.name for s in structures() if s.can_round and not s.is_dense)
"""Structures whose numbers bear few bits."""


class CompressOptions(WorkOptions, total=False):
    """The keywords of `compress`, whose docstring describes them."""

    plan: str | Path | None
    selector: Selector | None
    refit: bool
    refine: bool
    heal: Training | float | None
    tasks: Sequence[str]
    max_drop: float | None
    beside: str | Path | None
    latency: bool
    with_past: bool
    int8: bool
    target: Target | None
    timings: Timings | str | Path | None


@dataclass(frozen=True, kw_only=True)
class Request(Work):
    """The options of `compress` with their defaults, and its budget."""

    budget: Budget | None = None
    plan: str | Path | None = None
    selector: Selector | None = None
    refit: bool = True
    refine: bool = True
    heal: Training | None = None
    tasks: Sequence[str] = ()
    max_drop: float | None = None
    beside: str | Path | None = None
    latency: bool = True
    with_past: bool = False
    int8: bool = True
    target: Target = field(default_factory=Target)
    timings: Timings | None = None

    @property
    def keep(self) -> float | None:
        """The share of the targeted parameters that is kept; None if the budget does not say."""
        return self.budget.limit if self.budget is not None and self.budget.kind == "params" else None

    @property
    def kind(self) -> PlanSource:
        """How the plan is found."""
        if self.max_drop is not None:
            return "drop"
        return "share" if self.budget is None else SOURCES.get(self.budget.kind, "share")

    def check_model(self, dense: Backend) -> None:
        """Refuse a model that this cannot be done with.

        Raises:
            LowRankError: with the reason.
        """
        if is_streamed(dense):
            from lowrank.pipeline.streamed import refuse_whole

            refuse_whole(
                heal=self.heal,
                speedup=self.budget is not None and self.budget.kind == "speedup",
                latency=self.kind == "time",
                size=self.kind == "size",
                quantize=self.target.dtype != "float32",
                with_past=self.with_past,
                keep_lora=self.beside,
                task=self.tasks,
                max_drop=self.kind == "drop",
            )
        if self.heal is not None:
            # A budget of bytes chooses types of few bits itself.
            counted = self.budget is not None and self.budget.most_bytes is not None
            check_healable(dense, self.heal, exact=self.target == Target() and not counted)
            check_device(self.heal.device)
        if self.with_past:
            dense.check_with_past()

    def check_run(self, dense: Backend) -> None:
        """Refuse what takes runs of the model, or a graph of it, where it cannot be run; its data are read by then.

        Raises:
            LowRankError: with the option.
        """
        if not isinstance(dense.signature, str) or is_streamed(dense):
            return
        asked = {
            "--quantize or --profile": self.target != Target(),
            "--speedup or --latency": self.kind == "time",
            "--size": self.kind == "size",
            "--max-drop": self.kind == "drop",
            "--task": bool(self.tasks),
        }
        named = next((option for option, given in asked.items() if given), None)
        if named is not None:
            raise LowRankError(
                f"{named} takes a graph or runs of the model, and there are none: {dense.signature}; say how it is "
                "built with --arch or --config, give its inputs with --calib inputs.npz, or leave the option out"
            )


def read_request(budget: Budget | float | None, **options: Unpack[CompressOptions]) -> Request:
    """What is asked for, with tables of times read from their files.

    Raises:
        LowRankError: if it cannot be done, or parts of it contradict each other.
        TypeError: if there is no such option.
    """
    budget = Budget.params(budget) if isinstance(budget, int | float) else budget
    target, heal, timings = options.get("target") or Target(), options.get("heal"), options.get("timings")
    heal = heal if heal is None or isinstance(heal, Training) else Training(minutes=heal)
    others: dict[str, Any] = {**options, "heal": heal, "target": target, "timings": None}
    request = Request(budget=budget, **others)
    _check(request)
    if timings is not None:
        if request.kind != "time":
            raise LowRankError("a table of timings is for a budget of time; give --speedup 3 or --latency 0.5")
        table = timings if isinstance(timings, Timings) else read_table(Path(timings).expanduser())
        request = replace(request, timings=check_table(table, target.dtype))
    if request.kind == "drop" and not request.tasks:
        request = replace(request, tasks=("fidelity",))
    selector = Knapsack() if request.selector is None else request.selector
    # What is truncated for pivots would be no smaller in a graph that has none.
    limits = {SAME_CHANNELS: request.beside is not None, FEW_BITS: target.dtype in FORMATS}
    asked = [names for names, limited in limits.items() if limited]
    if asked and isinstance(selector, Knapsack) and selector.structures is None:
        common = tuple(name for name in asked[0] if all(name in names for names in asked))
        request = replace(request, selector=replace(selector, structures=common))
    return request


def _check(request: Request) -> None:
    budget, plan, heal, target = request.budget, request.plan, request.heal, request.target
    target.check()
    if plan is not None:
        # Whether it fits the model is known when there is an analysis.
        entries_of(read_json(Path(plan).expanduser(), "plan"))
    check_drop(request.max_drop)
    if request.max_drop is not None and (budget is not None or plan is not None):
        raise LowRankError("--max-drop chooses the keep ratio itself: leave the budget or the plan out")
    if budget is None and plan is None and request.max_drop is None:
        raise LowRankError(
            "there is no budget; give --budget 0.5 (the share of parameters to keep), --error, or a --plan"
        )
    if heal is not None and processes()[1] > 1:
        raise HealingError("with several processes compress first, then run `accelerate launch -m lowrank heal RUN`")
    if request.beside is not None and heal is not None and heal.adapter is not None and heal.fold == "no":
        raise HealingError("--keep-lora and --adapter exclude each other, unless --fold is given")
    if budget is not None and budget.kind in ("size", "speedup") and target.dtype != "float32":
        raise LowRankError(f"a {budget.kind} chooses the type of each weight; leave --quantize out")
