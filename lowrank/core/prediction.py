"""The relative error that a plan is predicted to have, before anything is made or run."""

from __future__ import annotations

import math

import numpy as np

from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan


def is_measured(analysis: Analysis) -> bool:
    """Whether it was measured how cutting weights changes the model's output."""
    return any(record.measured for record in analysis.weights)


def predicted_error(analysis: Analysis, plan: Plan) -> float:
    """Relative error of the model's output, as the selector predicts it; of the weights where nothing was measured.

    That of the output is the root of a sum over groups: the squared error that each group's cut was measured to cause.
    """
    if not is_measured(analysis):
        return weight_error(analysis, plan)
    groups, keep = analysis.groups, min(max(plan.keep_ratio, 1e-6), 1.0)
    losses = [
        float(analysis.loss(groups[option.group], option.structure, np.array([option.error]), keep)[0])
        for option in plan.options
        if option.error > 0
    ]
    return math.sqrt(sum(losses))


def weight_error(analysis: Analysis, plan: Plan) -> float:
    """Relative Frobenius error of all targeted matrices together, exact by their spectra."""
    energy = {record.weight.name: float((record.plain.values**2).sum()) for record in analysis.weights}
    groups = analysis.groups
    lost = sum(option.error * sum(energy[name] for name in groups[option.group].weights) for option in plan.options)
    total = sum(energy.values())
    return math.sqrt(lost / total) if total else 0.0
