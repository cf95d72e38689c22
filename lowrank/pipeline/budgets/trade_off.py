"""The plans of many budgets, solved from the analysis of a run, and what each of them is predicted to lose."""

from __future__ import annotations

from pathlib import Path

from lowrank.artifacts import load_analysis, write_json
from lowrank.artifacts.lock import holding
from lowrank.core.budget import Budget
from lowrank.core.prediction import is_measured, predicted_error
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.selector import Selector
from lowrank.errors import InfeasibleBudget
from lowrank.progress import Track, silent
from lowrank.results.forecast import Prediction, TradeOff

KEEPS = (0.05, 0.1, 0.15, 0.2, 0.275, 0.35, 0.425, 0.5, 0.575, 0.65, 0.725, 0.8, 0.9)


@holding("run")
def trade_off(run: str | Path, selector: Selector | None = None, track: Track = silent) -> TradeOff:
    """Solve many budgets, and write what each is predicted to lose to `tradeoff.json`, which the page draws.

    A model of 7 billion parameters takes some seconds a budget. Budgets that no plan can meet are left out.

    Args:
        run: a folder with an analysis.
        selector: chooses the ranks; the exact one by default.
        track: shows progress.

    Raises:
        ArtifactError: if there is no analysis in the folder.
        InfeasibleBudget: if no budget can be met.

    Example:
        lowrank.pipeline.trade_off("lowrank-run").points[0].error
    """
    folder, selector = Path(run).expanduser(), selector or Knapsack()
    analysis, errors = load_analysis(folder), dict[float, float]()
    for keep in track(KEEPS, "solving budgets", len(KEEPS)):
        try:
            plan = selector.select(analysis, Budget.params(keep))
        except InfeasibleBudget:
            continue
        errors[plan.keep_ratio] = predicted_error(analysis, plan)
    if not errors:
        raise InfeasibleBudget("no plan meets any of the budgets; give a smaller --multiple, or more --structures")
    points = [Prediction(keep=keep, error=error) for keep, error in sorted(errors.items())]
    result = TradeOff(analysis=analysis.fingerprint, of_output=is_measured(analysis), points=points)
    write_json(folder / TradeOff.file, "tradeoff", result.to_json())
    return result
