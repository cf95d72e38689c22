"""Plan: the option chosen for every group. Editable JSON; ranks are what counts, the rest is recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.cost import Unit
from lowrank.core.listing import listed
from lowrank.core.match import nearest
from lowrank.core.rounding.cost import BITS
from lowrank.core.rounding.formats import Stored
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Option, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.weight import Group
from lowrank.errors import InfeasibleBudget, PlanMismatch

ELSEWHERE = ("latency", "speedup", "size")
"""Kinds of budgets that options alone cannot be checked against: they need timings, or the written file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which structure and rank each group gets, what that costs, and how good it is predicted to be."""

    analysis: str
    """Fingerprint of the analysis that the ranks were chosen from."""
    budget: Budget | None
    """What was asked for; None when the ranks were given by hand."""
    selector: Mapping[str, Any]
    options: tuple[Option, ...]
    dense_cost: int
    share: float | None = None
    """What the plan comes to in the budget's own unit: a share of the dense cost, or bytes for a size. None for errors,
    which the options tell."""
    gap: float | None = None
    """How far the summed error can be from the best possible, as a share of that sum: 0 is optimal, None unknown."""
    notes: tuple[str, ...] = field(default=())

    @property
    def cost(self) -> int:
        """Numbers that the targeted weights will hold."""
        return sum(option.cost for option in self.options)

    @property
    def keep_ratio(self) -> float:
        """Cost as a share of the dense cost."""
        return self.cost / self.dense_cost if self.dense_cost else 1.0

    @property
    def worst_error(self) -> float:
        """The largest relative output error predicted for any group."""
        return max((option.error for option in self.options), default=0.0) ** 0.5

    @property
    def reached(self) -> float:
        """What the budget's own measure comes to; not a number for time without timings and a size without a file."""
        if self.budget and self.budget.kind == "error":
            return self.worst_error
        if self.budget and self.budget.kind in ELSEWHERE and self.share is None:
            return math.nan
        if self.budget and self.budget.kind == "speedup" and self.share:
            return 1 / self.share
        return self.keep_ratio if self.share is None else self.share

    @property
    def is_typed(self) -> bool:
        """Whether types were chosen: some weight is not stored in floating numbers of 32 bits."""
        return any(option.dtype != "float32" for option in self.options)

    @property
    def is_sized(self) -> bool:
        """Whether its budget limits the bytes of the file."""
        return self.budget is not None and self.budget.most_bytes is not None

    @property
    def meets_budget(self) -> bool:
        """Whether the plan is within its budget."""
        if self.budget is None or (self.budget.kind in ELSEWHERE and self.share is None):
            return True
        if self.budget.kind == "speedup":
            return self.reached >= self.budget.limit * (1 - 1e-9)
        return self.reached <= self.budget.limit * (1 + 1e-9)

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold, for `from_json`."""
        return {
            "analysis": self.analysis,
            "budget": self.budget.to_json() if self.budget else None,
            "selector": dict(self.selector),
            "dense_cost": self.dense_cost,
            "cost": self.cost,
            "keep_ratio": self.keep_ratio,
            "worst_relative_error": self.worst_error,
            "budget_reached": None if math.isnan(self.reached) else self.reached,
            "optimality_gap": self.gap,
            "notes": list(self.notes),
            "groups": [
                {
                    "name": o.group,
                    "structure": o.structure,
                    "rank": o.rank,
                    "cost": o.cost,
                    "relative_error": o.error**0.5,
                    **({} if o.dtype == "float32" else {"dtype": o.dtype}),
                }
                for o in self.options
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], analysis: Analysis, budget: Budget | None) -> Plan:
        """A plan, perhaps edited, checked against the analysis; costs and errors are recomputed.

        A group that the file does not name stays dense.

        Raises:
            PlanMismatch: if it belongs to another analysis, or names a group, structure or rank there is not.
        """
        parent = content.get("analysis")
        if parent != analysis.fingerprint:
            raise PlanMismatch(
                f"the plan was made from the analysis {parent}, but this one is {analysis.fingerprint}; "
                "select again, or give the model and settings that the plan was made from"
            )
        groups, taken = analysis.groups, dict[str, str]()
        chosen: dict[str, Option] = {}
        entries = entries_of(content)
        for entry in entries:
            option = _read_option(entry, groups, analysis)
            if option.group in chosen:
                raise PlanMismatch(f"the plan names {option.group} twice; keep one of the two entries")
            for name in groups[option.group].weights:
                if taken.setdefault(name, option.group) != option.group:
                    raise PlanMismatch(
                        f"the plan decides {name} twice, in {taken[name]} and in {option.group}; keep one of the two"
                    )
            chosen[option.group] = option
        for group in analysis.singles:
            if group.name not in taken:
                chosen[group.name] = Dense().at(group, analysis, 0)
        options = in_order(chosen.values(), analysis)
        larger = [o.group for o in options if o.cost > analysis.params(groups[o.group])]
        notes = (f"{len(larger)} weights are larger than dense at the plan's ranks: {listed(larger)}",)
        gap, selector = content.get("optimality_gap"), content.get("selector")
        untouched = content.get("cost") == sum(o.cost for o in options) and all(
            isinstance(e, dict)
            and cast("dict[str, Any]", e).get("cost") == chosen[cast("dict[str, Any]", e)["name"]].cost
            for e in entries
        )
        known = untouched and isinstance(selector, dict) and isinstance(gap, int | float | None)
        share, reached = share_of(budget, options, analysis), content.get("budget_reached")
        before = content.get("budget")
        kind = cast("dict[str, Any]", before).get("kind") if isinstance(before, dict) else None
        if budget is not None and budget.kind == kind and known and isinstance(reached, float):
            share = {"latency": reached, "speedup": 1 / max(reached, 1e-9)}.get(budget.kind, share)
        return cls(
            analysis=analysis.fingerprint,
            budget=budget,
            selector=cast("dict[str, Any]", selector) if known else {"type": "given"},
            gap=gap if known else None,
            options=options,
            dense_cost=analysis.dense_params,
            share=share,
            notes=notes if larger else (),
        )


def entries_of(content: Mapping[str, Any]) -> list[Any]:
    """What a plan chooses, as the file has it.

    Raises:
        PlanMismatch: if it has no such list.
    """
    entries = content.get("groups")
    if not isinstance(entries, list):
        raise PlanMismatch('the plan has no list "groups"; give back a plan.json that lowrank wrote')
    return cast("list[Any]", entries)


def share_of(budget: Budget | None, options: Iterable[Option], analysis: Analysis) -> float | None:
    """What some options keep in the unit of a budget; None if it has none."""
    if budget is None or budget.kind in ("error", "milliseconds", *ELSEWHERE):
        return None
    cost = sum(cost_in(budget.kind, option, analysis) for option in options)
    return cost / max(dense_cost(budget.kind, analysis), 1)


def cost_in(unit: Unit, option: Option, analysis: Analysis) -> int:
    """What an option costs in a unit."""
    weights = analysis.weights_of(analysis.groups[option.group])
    return int(structure_named(option.structure).spent(unit, option.curve, weights)[0])


def dense_cost(unit: Unit, analysis: Analysis) -> int:
    """What all the targeted weights cost as they are."""
    return sum(cost_in(unit, Dense().at(group, analysis, 0), analysis) for group in analysis.singles)


def in_order(options: Iterable[Option], analysis: Analysis) -> tuple[Option, ...]:
    """Options in the order of the first weight of each."""
    place = {single.name: i for i, single in enumerate(analysis.singles)}
    return tuple(sorted(options, key=lambda o: place[analysis.groups[o.group].weights[0]]))


def _read_option(entry: Any, groups: Mapping[str, Group], analysis: Analysis) -> Option:
    content = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    name, kind, rank = content.get("name"), content.get("structure"), content.get("rank")
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(rank, int) or isinstance(rank, bool):
        raise PlanMismatch(f'the plan\'s entry {entry!r} must hold a "name", a "structure" and a whole number "rank"')
    if name not in groups:
        raise PlanMismatch(f"the plan names {name!r}, which the analysis does not hold{nearest(name, groups)}")
    try:
        structure = structure_named(kind)
    except ValueError as error:
        raise PlanMismatch(f"{name}: {error}") from None
    dtype = content.get("dtype", "float32")
    if dtype not in BITS:
        raise PlanMismatch(f"{name}: it cannot be stored in {dtype!r}; there is {', '.join(BITS)}")
    try:
        return option_at(structure, groups[name], analysis, rank, dtype)
    except ValueError as error:
        raise PlanMismatch(f"{name}: rank {rank} in the plan; {error}") from None


def option_at(structure: Structure, group: Group, analysis: Analysis, rank: int, dtype: str) -> Option:
    """A structure of a rank in a type.

    Raises:
        ValueError: if there is none; the message says why.
    """
    stored = structure.stored_in(structure.at(group, analysis, rank).curve, group, analysis, dtype)
    if not len(stored.ranks):
        raise ValueError(f"it has no form in {dtype}; try float16")
    return stored.option(group.name, 0)


def stored_weights(plan: Plan, analysis: Analysis) -> dict[str, Stored]:
    """How each weight is stored, by all names that it has: in a graph a table may have that of the head tied to it."""
    return {
        each: Stored(option.dtype, option.rank if structure_named(option.structure).is_residual else 0)
        for option in plan.options
        for weight in analysis.weights_of(analysis.groups[option.group])
        for each in (weight.name, *(f"{layer.name}.weight" for layer in weight.layers))
    }


def check_budget(plan: Plan) -> Plan:
    """The plan itself if it is within its budget.

    Raises:
        InfeasibleBudget: if it is not.
    """
    if plan.meets_budget:
        return plan
    assert plan.budget is not None
    if plan.budget.kind == "speedup":
        raise InfeasibleBudget(
            f"the plan is {plan.reached:.4g} times as fast, and {plan.budget.limit:g} times were asked for; lower some "
            "ranks in it, or ask for less"
        )
    raise InfeasibleBudget(
        f"the plan comes to {plan.reached:.4f}, above its budget of {plan.budget.limit:g} ({plan.budget.kind}); "
        "lower some ranks in it, or raise the budget"
    )
