"""Selector: a policy from an Analysis and a Budget to a Plan; what all policies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from lowrank.core.analysis import Analysis
from lowrank.core.budget import NAMES, Budget
from lowrank.core.plan import Plan, in_order, share_of
from lowrank.core.selection.registry import selector_name
from lowrank.core.structures.base import Option
from lowrank.core.structures.two_factor import TwoFactor
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


def infeasible(analysis: Analysis, budget: Budget, smallest: float) -> InfeasibleBudget:
    """The error of a budget that even the smallest ranks, which keep this share, do not meet."""
    name = NAMES["params" if budget.kind == "error" else budget.kind]
    return InfeasibleBudget(
        f"a budget of {budget.limit:g} cannot be met: with every weight at its smallest the {len(analysis.weights)} "
        f"targeted weights still hold {smallest:.6f} of their {name}; the smallest budget that can be met is "
        f"{round_up(smallest)}"
    )


def uniform_minimum(group: Group, analysis: Analysis, multiple: int) -> float:
    """The share of its parameters that a group of one weight keeps at the smallest rank on offer."""
    curve = TwoFactor().curve(group, analysis, multiple)
    return float(curve.costs[0]) / analysis.params(group) if len(curve.costs) else 1.0


def round_up(ratio: float, digits: int = 4) -> float:
    """A ratio as it is shown where less would not do: rounded up."""
    return float(np.ceil(ratio * 10**digits) / 10**digits)


def plan_of(
    selector: Selector, analysis: Analysis, budget: Budget, options: Sequence[Option], gap: float | None = None
) -> Plan:
    """The plan that a selector has come to.

    Args:
        selector: a frozen dataclass; its fields are kept in the plan.
        analysis: what it chose from.
        budget: what was asked for.
        options: one for each group that it splits the weights into.
        gap: how far from optimal it can be, as a share of its error, if that is known.
    """
    settings: dict[str, Any] = {k: v for k, v in asdict(selector).items() if v is not None}  # pyright: ignore[reportArgumentType, reportCallIssue]
    if budget.most_bytes is None:
        # What only a budget of bytes of a file looks at.
        settings = {k: v for k, v in settings.items() if k not in ("dtypes", "overhead")}
    if "timings" in settings:
        # Where they are from; they themselves are a file of their own.
        settings["timings"] = {k: v for k, v in settings["timings"].items() if k not in ("points", "others")}
    return Plan(
        analysis=analysis.fingerprint,
        budget=budget,
        selector={"type": selector_name(selector), **settings},
        options=in_order(options, analysis),
        dense_cost=analysis.dense_params,
        share=share_of(budget, options, analysis),
        gap=gap,
    )
