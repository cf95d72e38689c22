"""Simpler policies that the literature uses, for comparison: uniform ranks, equal energy, equal error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank.core.analysis import Analysis
from lowrank.core.budget import NAMES, TIMED, Budget
from lowrank.core.linalg.eigen import Vector
from lowrank.core.plan import Plan
from lowrank.core.selection.selector import Selector, infeasible, plan_of, round_up, uniform_minimum
from lowrank.core.structures.base import Curve, Option
from lowrank.core.structures.dense import Dense
from lowrank.core.structures.two_factor import TwoFactor
from lowrank.core.weight import Group
from lowrank.errors import InfeasibleBudget


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """The same keep ratio for every weight: `r = floor(keep * rows cols / (rows + cols))`."""

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one keep ratio everywhere."""
        if budget.kind != "params":
            raise InfeasibleBudget("uniform ranks need --budget, a share of parameters; use another selector")
        chosen: list[Option] = []
        for group in analysis.singles:
            dense = Dense().curve(group, analysis, self.multiple)
            limit = budget.limit * int(dense.costs[0])
            curve = TwoFactor().curve(group, analysis, self.multiple)
            within = np.flatnonzero(curve.costs <= limit)
            if dense.costs[0] <= limit:
                chosen.append(dense.option(group.name, 0))
            elif len(within):
                chosen.append(curve.option(group.name, int(within[-1])))
            else:
                smallest = max(uniform_minimum(g, analysis, self.multiple) for g in analysis.singles)
                raise InfeasibleBudget(
                    f"{group.name}: even rank 1 takes more than {budget.limit:g} of its numbers; the smallest budget "
                    f"that uniform ranks can meet is {round_up(smallest)}; the default selector can go lower"
                )
        return plan_of(self, analysis, budget, chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """One share of plain spectral energy for all weights, as large as the budget allows."""

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one energy threshold everywhere."""
        return _one_tolerance(self, analysis, budget, lambda name: analysis[name].plain.tail_energy)


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeError:
    """One relative output error for all weights, as small as the budget allows.

    Surrogate-optimal in the sense of PGSVD (2025): one tolerance for every layer.
    """

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one error tolerance everywhere."""
        return _one_tolerance(self, analysis, budget, _output_error(analysis))


def _one_tolerance(selector: Selector, analysis: Analysis, budget: Budget, lost: Callable[[str], Vector]) -> Plan:
    """The least tolerance at which every weight's cheapest option within it meets the budget."""
    multiple: int = getattr(selector, "multiple", 1)
    dense = [Dense().curve(group, analysis, multiple) for group in analysis.singles]
    curves = [TwoFactor().curve(group, analysis, multiple) for group in analysis.singles]
    if budget.kind in ("bytes", "macs", "size", *TIMED):
        raise InfeasibleBudget(
            f"a budget of {NAMES[budget.kind]} is for the knapsack; other selectors count parameters"
        )
    if budget.kind == "error":
        # The budget is about output errors, whatever the policy compares otherwise.
        lost = _output_error(analysis)
    losses = [lost(g.weights[0])[c.ranks] for g, c in zip(analysis.singles, curves, strict=True)]

    def at(tolerance: float) -> list[Option]:
        pairs = zip(analysis.singles, dense, curves, losses, strict=True)
        return [_cheapest(group, d, c, loss, tolerance) for group, d, c, loss in pairs]

    if budget.kind == "error":
        return plan_of(selector, analysis, budget, at(budget.limit**2))
    limit = int(budget.limit * analysis.dense_params)
    # Cost only changes at a value of some curve: bisect over those values.
    steps = np.unique(np.concatenate([[0.0, 1.0], *losses]))
    low, high = 0, len(steps) - 1
    if sum(o.cost for o in at(float(steps[high]))) > limit:
        least = sum(o.cost for o in at(float(steps[high])))
        raise infeasible(analysis, budget, least / max(analysis.dense_params, 1))
    while low < high:
        middle = (low + high) // 2
        if sum(o.cost for o in at(float(steps[middle]))) <= limit:
            high = middle
        else:
            low = middle + 1
    return plan_of(selector, analysis, budget, at(float(steps[high])))


def _output_error(analysis: Analysis) -> Callable[[str], Vector]:
    return lambda name: analysis[name].error_curve


def _cheapest(group: Group, dense: Curve, curve: Curve, loss: Vector, tolerance: float) -> Option:
    within = np.flatnonzero(loss <= tolerance)
    return curve.option(group.name, int(within[0])) if len(within) else dense.option(group.name, 0)
