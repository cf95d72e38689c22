"""Ranks for a finished model that is cut again: the knapsack over what is left of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, in_order
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.remaining import Remaining
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Curve, Option
from lowrank.core.structures.dense import Dense
from lowrank.core.weight import Group
from lowrank.errors import InfeasibleBudget


@dataclass(frozen=True, kw_only=True)
class Cutting(Knapsack):
    """The exact knapsack, in which every group can stay as it is and none can get larger."""

    name_in_plans: ClassVar[str] = "lowrank.core.cutting:Cutting"
    """Fixed, wherever the class stands: plans are compared and read again."""

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan that adds least to the error of the finished model, within the budget of the dense one."""
        assert isinstance(analysis, Remaining)
        if budget.kind == "error":
            return self._within_error(analysis, budget)
        return super().select(analysis, budget)

    def _within_error(self, analysis: Remaining, budget: Budget) -> Plan:
        """Every group as small as it can be for the error that each may have, what it has lost already included."""
        chosen: list[Option] = []
        for name, now in analysis.now.items():
            curves = self._curves(analysis.groups[name], analysis)
            options = [curve.option(name, i) for curve in curves for i in range(len(curve.ranks))]
            within = [o for o in options if now.error + (1 - now.error) * o.error <= budget.limit**2]
            if not within:
                raise InfeasibleBudget(
                    f"{name} has lost {math.sqrt(now.error):.4f} of its output already, more than the {budget.limit:g} "
                    "that each may have; give more, or compress the original again"
                )
            chosen.append(min(within, key=lambda option: option.cost))
        return Plan(
            analysis=analysis.fingerprint,
            budget=budget,
            selector={"type": "knapsack", "multiple": self.multiple},
            options=in_order(chosen, analysis),
            dense_cost=analysis.dense_params,
        )

    def _curves(self, group: Group, analysis: Analysis, step: int = 1) -> list[Curve]:
        """What is on offer for a group that may have been decided on already."""
        assert isinstance(analysis, Remaining)
        now = analysis.now.get(group.name)
        if now is None:
            owners = [analysis.now[analysis.group_of[name]] for name in group.weights]
            taken = any(structure_named(o.structure).fixed_order or o.group in analysis.fixed for o in owners)
            return [Curve.empty(Dense().name)] if taken else super()._curves(group, analysis, step)
        itself = replace(now, error=0.0).curve
        if group.name in analysis.fixed:
            return [itself]
        offers = [itself]
        for curve in super()._curves(group, analysis, step):
            before, after = structure_named(now.structure), structure_named(curve.structure)
            if before.is_dense and not after.is_dense:
                offers.append(curve)
            elif not before.is_dense and (before is after or before.by_rank):
                offers.append(_below(curve, now))
        return offers


def _below(curve: Curve, now: Option) -> Curve:
    """The points of a curve at which the group gets smaller than it is now."""
    if structure_named(now.structure).by_rank and not structure_named(curve.structure).by_rank:
        return Curve.empty(curve.structure)
    smaller = (curve.ranks <= now.rank) & (curve.costs < now.cost)
    return replace(curve, ranks=curve.ranks[smaller], costs=curve.costs[smaller], errors=curve.errors[smaller])


def cutting_of(plan: Plan) -> Cutting:
    """How to choose again what a plan had chosen: with the structures that it could have had, or has."""
    selector = plan.selector
    known = selector.get("type") == "knapsack"
    structures = selector.get("structures") if known else sorted({o.structure for o in plan.options} - {Dense().name})
    multiple, listed = selector.get("multiple", 1), isinstance(structures, list | tuple)
    return Cutting(
        multiple=multiple if isinstance(multiple, int) and multiple > 0 else 1,
        structures=tuple(map(str, cast("Sequence[object]", structures))) if listed else None,
    )
