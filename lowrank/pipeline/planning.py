"""The second and third stage: from an Analysis to a Plan, and from a Plan to factors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.artifacts import read_json
from lowrank.backends import Backend
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, check_budget
from lowrank.core.select import Knapsack, Selector
from lowrank.core.structures import Option, factorized
from lowrank.core.structures.base import Replacement
from lowrank.parallel import windowed_map
from lowrank.progress import Track, silent

if TYPE_CHECKING:
    from lowrank.calibrate import Calibration


def select(analysis: Analysis, budget: Budget | float, selector: Selector | None = None) -> Plan:
    """The ranks for a budget: pure, needs no model, takes milliseconds.

    Args:
        analysis: what `analyze` gave.
        budget: a `Budget`, or a keep ratio.
        selector: the policy; by default the exact knapsack.

    Raises:
        InfeasibleBudget: if no ranks meet it.

    Example:
        plan = lowrank.select(analysis, 0.5)
    """
    budget = budget if isinstance(budget, Budget) else Budget.params(budget)
    return check_budget((selector or Knapsack()).select(analysis, budget))


def refitted(
    calibration: Calibration, made: Mapping[str, Replacement], analysis: Analysis, track: Track = silent
) -> dict[str, Replacement]:
    """The same replacements, each fitted to what it sees in the compressed model."""
    from lowrank.calibrate import sequential_refit

    return sequential_refit(calibration, calibration.backend.rewrite(made), made, analysis, track)


def read_plan(path: Path, analysis: Analysis, budget: Budget | None) -> Plan:
    """A plan.json, perhaps edited by hand, checked against the analysis and the budget.

    Raises:
        PlanMismatch: if it does not belong to the analysis.
        InfeasibleBudget: if it is over the budget.
    """
    return check_budget(Plan.from_json(read_json(path, "plan"), analysis, budget))


def factorize(backend: Backend, analysis: Analysis, plan: Plan, track: Track = silent) -> dict[str, Replacement]:
    """What replaces each weight that the plan does not leave dense, by weight name."""
    from threadpoolctl import threadpool_limits

    def job(option: Option) -> dict[str, Replacement]:
        return dict(factorized(option, analysis, backend))

    with threadpool_limits(1):
        parts = list(track(windowed_map(job, plan.options), "factorizing", len(plan.options)))
    return {name: factors for part in parts for name, factors in part.items()}
