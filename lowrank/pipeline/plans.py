"""The second and third stage: from an Analysis to a Plan, and from a Plan to factors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.artifacts import read_json
from lowrank.artifacts.journal import NOWHERE, Journal, Journaled
from lowrank.artifacts.replacements import ReplacementsCodec
from lowrank.backends import Backend
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, check_budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.selector import Selector
from lowrank.core.structures import factorized
from lowrank.core.structures.base import Option, Replacement
from lowrank.pipeline.execution import Execution
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
    calibration: Calibration,
    made: Mapping[str, Replacement],
    analysis: Analysis,
    track: Track = silent,
    journal: Journal = NOWHERE,
) -> dict[str, Replacement]:
    """The same replacements, each fitted to what it sees in the compressed model."""
    from lowrank.calibrate import sequential_refit

    return sequential_refit(calibration, calibration.backend.rewrite(made), made, analysis, track, journal)


def read_plan(path: Path, analysis: Analysis, budget: Budget | None) -> Plan:
    """A plan.json, perhaps edited by hand, checked against the analysis and the budget.

    Raises:
        PlanMismatch: if it does not belong to the analysis.
        InfeasibleBudget: if it is over the budget.
    """
    return check_budget(Plan.from_json(read_json(path, "plan"), analysis, budget))


def factorize(
    backend: Backend,
    analysis: Analysis,
    plan: Plan,
    track: Track = silent,
    execution: Execution | None = None,
    journal: Journal = NOWHERE,
) -> dict[str, Replacement]:
    """What replaces each weight that the plan does not leave dense, by weight name."""
    execution = execution or Execution()

    def job(option: Option) -> Mapping[str, Replacement]:
        return factorized(option, analysis, backend)

    kept = Journaled(job, journal, lambda option: option.group, ReplacementsCodec())
    with execution.pool([record.weight for record in analysis.weights]) as pool:
        parts = list(track(pool.map(kept, plan.options), "factorizing", len(plan.options)))
    return {name: factors for part in parts for name, factors in part.items()}
