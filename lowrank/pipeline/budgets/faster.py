"""What would make a result faster that is slower than the dense model: budgets of time, tried by prediction."""

from __future__ import annotations

from lowrank.core.budget import Budget
from lowrank.core.selection.knapsack import Knapsack
from lowrank.edge.target import Target
from lowrank.errors import LowRankError
from lowrank.pipeline.budgets.operator_times import model_times
from lowrank.pipeline.plans import select
from lowrank.pipeline.session import Session
from lowrank.results.parts import Latency

LIMITS = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the dense model's time."""
LEAST_MS = 2.0
"""A dense model that takes less is no reason to time operators: it costs more than it could bring."""


def faster(session: Session, target: Target, times: Latency) -> str | None:
    """A sentence on the mildest budget of time that is predicted to be met here, or on none being so.

    None where operators cannot be timed, where the result is not slower, or where both take next to nothing.

    Args:
        session: with the analysis of the dense model.
        target: what graphs are for.
        times: what was measured of the result.
    """
    if times.speedup >= 1 or times.dense_ms < LEAST_MS:
        return None
    analysis = session.analysis
    try:
        timings = model_times(session.graph, analysis, target, (target.dtype,))
    except LowRankError:
        return None
    for limit in LIMITS:
        try:
            plan = select(analysis, Budget.latency(limit), Knapsack(timings=timings))
        except LowRankError:
            continue
        assert plan.share is not None
        return (
            f"--latency {limit:g} is predicted to take {plan.share * times.dense_ms:.3g} ms "
            f"(a keep ratio of {plan.keep_ratio:.2f})."
        )
    return f"No ranks are predicted to take less than {LIMITS[0]:.0%} of the dense model's time."
