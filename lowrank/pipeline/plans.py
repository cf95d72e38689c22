"""From an analysis to a plan, from a plan to the layers that replace others, and from these to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lowrank.artifacts import read_json
from lowrank.artifacts.journal import NOWHERE, Journal, Journaled
from lowrank.artifacts.replacements import REPLACEMENTS
from lowrank.backends import Backend
from lowrank.calibrate.refit import sequential_refit
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, check_budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.selector import Selector
from lowrank.core.structures import factorize_option
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.structures.permute import agree_channel_order
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.session import Session
from lowrank.progress import Track, silent


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
        return factorize_option(option, analysis, backend)

    journaled = Journaled(job, journal, lambda option: option.group, REPLACEMENTS)
    with execution.pool([record.weight for record in analysis.weights]) as pool:
        parts = list(track(pool.map(journaled, plan.options), "factorizing", len(plan.options)))
    return {name: factors for part in parts for name, factors in part.items()}


def replacements(session: Session, plan: Plan, *, refit: bool = True, permute: bool = True) -> dict[str, Replacement]:
    """What the layers of a plan's model hold, by weight name.

    Args:
        session: with an analysis.
        plan: that is followed.
        refit: fit each of them to what it sees in the compressed model, if there are data.
        permute: let channels change their order where that saves a gather.
    """
    dense, calibration, clock = session.dense, session.calibration, session.clock
    with clock.stage("factorize"):
        factored = factorize(dense, session.analysis, plan, session.track, session.execution, session.journal)
    if not factored:
        return {}
    if refit and calibration is not None:
        with clock.stage("refit"):
            small = dense.rewrite(factored)
            factored = sequential_refit(calibration, small, factored, session.analysis, session.track, session.journal)
    with clock.stage("rewrite"):
        # Permutations last: until then every weight is compared with its own dense outputs.
        return agree_channel_order(factored, dense.weights, dense.couplings if permute else (), dense)


def compressed_model(session: Session, plan: Plan, *, refit: bool = True, permute: bool = True) -> Backend:
    """The model of a plan; see `replacements`."""
    layers = replacements(session, plan, refit=refit, permute=permute)
    with session.clock.stage("rewrite"):
        return session.dense.rewrite(layers)
