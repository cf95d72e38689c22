"""What a plan comes to, without running anything: errors of weights, numbers, bytes and multiply-adds."""

from __future__ import annotations

import math

import numpy as np

from lowrank.backends.base import Backend
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan, cost_in, dense_cost
from lowrank.core.structures.dense import Dense
from lowrank.results.parts import BudgetResult, ModelSizes, Skipped, Targets

ONE = np.ones(1, np.int64)


def per_weight_error(analysis: Analysis, plan: Plan) -> dict[str, float]:
    """Of each weight's own output; of weights that were decided together, that of what they give together."""
    return {name: o.error**0.5 for o in plan.options for name in analysis.groups[o.group].weights}


def targets_of(analysis: Analysis, plan: Plan) -> Targets:
    """Parameters of the targeted weights, before and after."""
    before, after = analysis.dense_params, plan.cost
    return Targets(params_before=before, params_after=after, keep_ratio=after / before if before else 1.0)


def sizes_of(dense: Backend, params: int, nbytes: int, analysis: Analysis, plan: Plan) -> ModelSizes:
    """Parameters, bytes of the tensors, and multiply-adds as `core.cost.spent` counts them, before and after.

    Args:
        dense: the original.
        params: of the compressed model.
        nbytes: of its tensors.
        analysis: of the original.
        plan: that the compressed model follows.
    """
    left = [w for w in dense.weights if w.name not in analysis]
    rest = sum(int(Dense().spent("macs", ONE, np.array([w.params]), [w])[0]) for w in left)
    macs_after = rest + sum(cost_in("macs", option, analysis) for option in plan.options)
    return ModelSizes(
        params_before=dense.params,
        params_after=params,
        bytes_before=dense.nbytes,
        bytes_after=nbytes,
        macs_before=rest + dense_cost("macs", analysis),
        macs_after=macs_after,
    )


def budget_of(plan: Plan) -> BudgetResult:
    """The budget of a plan, and what the plan reaches of it."""
    reached = None if math.isnan(plan.reached) else plan.reached
    if plan.budget is None:
        return BudgetResult(kind="plan", reached=reached)
    return BudgetResult(kind=plan.budget.kind, limit=plan.budget.limit, reached=reached)


def skipped_of(analysis: Analysis) -> list[Skipped]:
    """The tensors that are left as they are."""
    return [Skipped(name=skip.name, shape=list(skip.shape), reason=skip.reason) for skip in analysis.skips]
