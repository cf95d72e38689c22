"""The plans of many budgets, solved from one analysis, and what each of them is predicted to lose."""

from __future__ import annotations

from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.prediction import is_measured, predicted_error
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.selector import Selector
from lowrank.errors import InfeasibleBudget
from lowrank.progress import Track, silent
from lowrank.results.forecast import Prediction, TradeOff

KEEPS = (0.05, 0.1, 0.15, 0.2, 0.275, 0.35, 0.425, 0.5, 0.575, 0.65, 0.725, 0.8, 0.9)


def trade_off(analysis: Analysis, selector: Selector | None = None, track: Track = silent) -> TradeOff:
    """What many budgets are predicted to lose: pure, needs no model, as `select` does for one budget.

    Budgets that no plan can meet are left out.

    Args:
        analysis: what `analyze` gave.
        selector: chooses the ranks; the exact one by default.
        track: shows progress.

    Raises:
        InfeasibleBudget: if no budget can be met.

    Example:
        lowrank.pipeline.trade_off(analysis).points[0].error
    """
    selector, errors = selector or Knapsack(), dict[float, float]()
    for keep in track(KEEPS, "solving budgets", len(KEEPS)):
        try:
            plan = selector.select(analysis, Budget.params(keep))
        except InfeasibleBudget:
            continue
        errors[plan.keep_ratio] = predicted_error(analysis, plan)
    if not errors:
        raise InfeasibleBudget("no plan meets any of the budgets; give a smaller --multiple, or more --structures")
    points = [Prediction(keep=keep, error=error) for keep, error in sorted(errors.items())]
    return TradeOff(analysis=analysis.fingerprint, of_output=is_measured(analysis), points=points)
