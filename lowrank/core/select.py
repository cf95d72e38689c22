"""Selectors: policies from an Analysis and a Budget to a Plan. Each is a frozen dataclass with one method.

`Knapsack` is the default. The others are simpler policies that the literature uses, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from lowrank.core.allocate import allocate
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.linalg import Vector
from lowrank.core.plan import Plan
from lowrank.core.structures import STRUCTURES, Curve, Dense, Option, TwoFactor
from lowrank.core.weight import Group
from lowrank.errors import InfeasibleBudget


class Selector(Protocol):
    """A policy from Analysis and Budget to ranks."""

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan for this budget.

        Raises:
            InfeasibleBudget: if no ranks meet it; the message says the smallest that can be met.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Knapsack:
    """Least predicted error of the model's output for the cost, over all weights at once, each free to stay dense.

    The prediction is the sum over weights of sensitivity times squared relative error. The choice is exact for it (see
    `allocate`); the sum itself is a heuristic, as errors of different layers are taken as additive.

    Under an error budget every weight takes its cheapest option within the error.
    """

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error within the budget."""
        curves = [_curves(group, analysis, self.multiple) for group in analysis.groups]
        if budget.kind == "error":
            within = [[o for o in c if o.error <= budget.limit**2] for c in curves]
            cheapest: list[Option] = [min(options, key=_cost) for options in within]
            return _plan(self, analysis, budget, cheapest)
        costs = [np.array([o.cost for o in c], dtype=np.int64) for c in curves]
        sensitivity = [_sensitivity(group, analysis) for group in analysis.groups]
        errors = [np.array([o.error for o in c]) * s for c, s in zip(curves, sensitivity, strict=True)]
        found = allocate(costs, errors, int(budget.limit * analysis.dense_params))
        if found is None:
            raise _infeasible(analysis, budget, sum(int(c.min()) for c in costs))
        gap = found.gap / found.error if found.error > 0 else 0.0
        return _plan(self, analysis, budget, [c[int(i)] for c, i in zip(curves, found.chosen, strict=True)], gap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """The same keep ratio for every weight: `r = floor(keep * rows cols / (rows + cols))`."""

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one keep ratio everywhere."""
        if budget.kind != "params":
            raise InfeasibleBudget("uniform ranks need --budget, a keep ratio; for --error use another selector")
        chosen: list[Option] = []
        for group in analysis.groups:
            dense = Dense().curve(group, analysis, self.multiple)
            limit = budget.limit * int(dense.costs[0])
            curve = TwoFactor().curve(group, analysis, self.multiple)
            within = np.flatnonzero(curve.costs <= limit)
            if dense.costs[0] <= limit:
                chosen.append(dense.option(group.name, 0))
            elif len(within):
                chosen.append(curve.option(group.name, int(within[-1])))
            else:
                smallest = max(_uniform_minimum(g, analysis, self.multiple) for g in analysis.groups)
                raise InfeasibleBudget(
                    f"{group.name}: no rank keeps {budget.limit:g} of it; the smallest budget that uniform ranks "
                    f"can meet is "
                    f"{_round_up(smallest)}; the default selector can go lower"
                )
        return _plan(self, analysis, budget, chosen)


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


SELECTORS: dict[str, type[Knapsack] | type[Uniform] | type[Energy] | type[RelativeError]] = {
    "knapsack": Knapsack,
    "uniform": Uniform,
    "energy": Energy,
    "relative-error": RelativeError,
}


def _cost(option: Option) -> int:
    return option.cost


def _curves(group: Group, analysis: Analysis, multiple: int) -> list[Option]:
    options: list[Option] = []
    for structure in STRUCTURES:
        curve = structure.curve(group, analysis, multiple)
        options += [curve.option(group.name, i) for i in range(len(curve.ranks))]
    return options


def _sensitivity(group: Group, analysis: Analysis) -> float:
    return sum(analysis[name].sensitivity for name in group.weights) / len(group.weights)


def _one_tolerance(selector: Selector, analysis: Analysis, budget: Budget, lost: Callable[[str], Vector]) -> Plan:
    """The least tolerance at which every weight's cheapest option within it meets the budget."""
    multiple: int = getattr(selector, "multiple", 1)
    dense = [Dense().curve(group, analysis, multiple) for group in analysis.groups]
    curves = [TwoFactor().curve(group, analysis, multiple) for group in analysis.groups]
    if budget.kind == "error":
        # The budget is about output errors, whatever the policy compares otherwise.
        lost = _output_error(analysis)
    losses = [lost(g.weights[0])[c.ranks] for g, c in zip(analysis.groups, curves, strict=True)]

    def at(tolerance: float) -> list[Option]:
        pairs = zip(analysis.groups, dense, curves, losses, strict=True)
        return [_cheapest(group, d, c, loss, tolerance) for group, d, c, loss in pairs]

    if budget.kind == "error":
        return _plan(selector, analysis, budget, at(budget.limit**2))
    limit = int(budget.limit * analysis.dense_params)
    # Cost only changes at a value of some curve: bisect over those values.
    steps = np.unique(np.concatenate([[0.0, 1.0], *losses]))
    low, high = 0, len(steps) - 1
    if sum(o.cost for o in at(float(steps[high]))) > limit:
        raise _infeasible(analysis, budget, sum(o.cost for o in at(float(steps[high]))))
    while low < high:
        middle = (low + high) // 2
        if sum(o.cost for o in at(float(steps[middle]))) <= limit:
            high = middle
        else:
            low = middle + 1
    return _plan(selector, analysis, budget, at(float(steps[high])))


def _output_error(analysis: Analysis) -> Callable[[str], Vector]:
    return lambda name: analysis[name].error_curve


def _cheapest(group: Group, dense: Curve, curve: Curve, loss: Vector, tolerance: float) -> Option:
    within = np.flatnonzero(loss <= tolerance)
    return curve.option(group.name, int(within[0])) if len(within) else dense.option(group.name, 0)


def _infeasible(analysis: Analysis, budget: Budget, cheapest: int) -> InfeasibleBudget:
    smallest = cheapest / max(analysis.dense_params, 1)
    return InfeasibleBudget(
        f"a budget of {budget.limit:g} cannot be met: with every weight at its smallest the {len(analysis.weights)} "
        f"targeted weights still hold {smallest:.6f} of their parameters; the smallest budget that can be met is "
        f"{_round_up(smallest)}"
    )


def _uniform_minimum(group: Group, analysis: Analysis, multiple: int) -> float:
    curve = TwoFactor().curve(group, analysis, multiple)
    return float(curve.costs[0]) / analysis.params(group) if len(curve.costs) else 1.0


def _round_up(ratio: float, digits: int = 4) -> float:
    return float(np.ceil(ratio * 10**digits) / 10**digits)


def _plan(
    selector: Selector, analysis: Analysis, budget: Budget, options: Sequence[Option], gap: float | None = None
) -> Plan:
    name = next(key for key, kind in SELECTORS.items() if isinstance(selector, kind))
    settings: dict[str, Any] = {"type": name, **asdict(selector)}  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Plan(
        analysis=analysis.fingerprint,
        budget=budget,
        selector=settings,
        options=tuple(options),
        dense_cost=analysis.dense_params,
        gap=gap,
    )
