"""The Pareto curve: what every budget is predicted to lose, and what was measured of some."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.artifacts import parse_json
from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.plan import Plan, weight_error
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.selection.registry import SELECTORS, selector_type
from lowrank.core.selection.selector import Selector
from lowrank.errors import InfeasibleBudget

KEEPS = (0.5, 0.2, 0.8, 0.1, 0.35, 0.65, 0.9, 0.05, 0.15, 0.275, 0.425, 0.575, 0.725)
"""Budgets, the coarse ones first."""
SECONDS = 20.0
"""Solving them may take so long; of a large model some are left out."""
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Predicted:
    """A plan's keep ratio, and the error that is predicted of it."""

    keep: float
    error: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A point of a sweep."""

    name: str
    nbytes: float | None
    milliseconds: float | None
    quality: float | None
    chosen: bool
    on_front: bool
    """Whether no other point is better in every respect."""


@dataclass(frozen=True, slots=True)
class Front:
    """All that is predicted, by rising keep ratio, and where the plan is."""

    points: tuple[Predicted, ...]
    chosen: Predicted | None
    of_output: bool
    """Whether errors are those of the model's output; else of the weights."""
    left_out: int
    """Budgets that there was no time for."""


def predicted_error(analysis: Analysis, plan: Plan) -> float:
    """Relative error that a plan is predicted to have, as the selector sees it.

    Of the model's output, a sum over groups of what cutting each was measured to do to it. Where nothing was measured
    the error of all targeted matrices together, in which each counts by its energy.
    """
    if is_measured(analysis):
        groups = analysis.groups
        keep = min(max(plan.keep_ratio, 1e-6), 1.0)
        losses = [
            float(analysis.loss(groups[o.group], o.structure, np.array([o.error]), keep)[0])
            for o in plan.options
            if o.error > 0
        ]
        return math.sqrt(sum(losses))
    return weight_error(analysis, plan)


def is_measured(analysis: Analysis) -> bool:
    """Whether it was measured what cutting weights does to the output."""
    return any(record.measured for record in analysis.weights)


def front_of(analysis: Analysis, plan: Plan | None) -> Front:
    """Plans for many budgets with the selector of the plan, or the default one."""
    selector, points, begun = _selector(plan), list[Predicted](), time.monotonic()
    left = list(KEEPS)
    while left and (len(left) == len(KEEPS) or time.monotonic() - begun < SECONDS):
        try:
            found = selector.select(analysis, Budget.params(left.pop(0)))
        except InfeasibleBudget:
            continue
        points.append(Predicted(found.keep_ratio, predicted_error(analysis, found)))
    chosen = Predicted(plan.keep_ratio, predicted_error(analysis, plan)) if plan is not None else None
    unlike = {round(p.keep, 6): p for p in points}
    return Front(tuple(sorted(unlike.values(), key=lambda p: p.keep)), chosen, is_measured(analysis), len(left))


def _selector(plan: Plan | None) -> Selector:
    """What chose the plan, for budgets of parameters."""
    known = dict(plan.selector) if plan is not None else {}
    kind, multiple, structures = known.get("type"), known.get("multiple", 1), known.get("structures")
    multiple = multiple if isinstance(multiple, int) and multiple > 0 else 1
    if kind in SELECTORS and kind != "knapsack":
        return selector_type(kind)(multiple=multiple)
    named = tuple(structures) if isinstance(structures, list | tuple) else None
    return Knapsack(multiple=multiple, structures=named)


def read_sweep(run: Path) -> tuple[Measured, ...]:
    """The points of a sweep that lies in a run; none if there is none, or if it is not one."""
    try:
        content = parse_json((run / SWEEP_FILE).read_text(encoding="utf-8"), finite=True)
    except (OSError, ValueError):
        return ()
    points = content.get("points") if isinstance(content, dict) else content
    if not isinstance(points, list):
        return ()
    entries = [each for each in points if isinstance(each, dict) and isinstance(each.get("name"), str)]
    found = [_point(entry) for entry in entries]
    told = [entry.get("on_front") for entry in entries]
    return tuple(
        replace(point, on_front=known if isinstance(known, bool) else _is_best(point, found))
        for point, known in zip(found, told, strict=True)
    )


def _point(entry: dict[str, Any]) -> Measured:
    def number(key: str) -> float | None:
        value = entry.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    chosen = entry.get("chosen") is True
    return Measured(entry["name"], number("bytes"), number("ms"), number("quality"), chosen, False)


def _is_best(point: Measured, points: Sequence[Measured]) -> bool:
    """Whether no other point is at least as small and as good, and better in one of both."""
    if point.nbytes is None or point.quality is None:
        return False
    return not any(
        other.nbytes is not None
        and other.quality is not None
        and (other.nbytes <= point.nbytes and other.quality >= point.quality)
        and (other.nbytes < point.nbytes or other.quality > point.quality)
        for other in points
    )
