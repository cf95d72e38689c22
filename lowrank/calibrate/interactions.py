"""Sensitivity in context: what each group adds to the error of a model that is compressed already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np

from lowrank.artifacts.journal import FACTS, NOWHERE, Journal
from lowrank.backends.base import Backend, Change
from lowrank.backends.inputs import Feed
from lowrank.calibrate.data import Calibration
from lowrank.calibrate.sensitivity import changes_of, reference_of, some_batches
from lowrank.core.analysis import Analysis, Context
from lowrank.core.budget import Budget
from lowrank.core.distance import References
from lowrank.core.plan import Plan
from lowrank.core.selection.knapsack import Knapsack
from lowrank.core.structures import factorize_option, structure_named
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.truncation.spatial import SpatialFactors
from lowrank.errors import InfeasibleBudget
from lowrank.parallel import threads
from lowrank.progress import Track

T = TypeVar("T")

KEEPS = (0.5, 0.3)
"""Keep ratios whose contexts are measured; between them the selector interpolates."""
ROUNDS = 2
MOST = 5.0
"""A factor is between this and its inverse, relative to the median: marginal errors near zero are noise."""


def measure_contexts(
    calibration: Calibration, analysis: Analysis, track: Track, journal: Journal = NOWHERE
) -> Analysis:
    """The analysis with its contexts: for some keep ratios, how much more or less each weight matters there.

    Errors of several layers do not add up exactly: some cancel, some reinforce each other. So the model is compressed
    as the selector would, each group in turn is put back dense, and what that gains is compared with what was predicted
    for it. The selector then solves again with the predictions corrected, and once more.
    """
    backend = calibration.backend
    feeds = some_batches(calibration)
    with backend.trials(feeds) as run:
        reference = reference_of(backend, feeds, run({}))
    tasks = [(keep, turn) for keep in KEEPS for turn in range(ROUNDS)]
    contexts: dict[float, Context] = {}
    for keep, turn in track(tasks, "measuring in context", len(tasks)):
        known = replace(analysis, contexts=(contexts[keep],) if keep in contexts else ())
        make = partial(_measured, backend, feeds, known, keep, reference)
        factors = journal.kept(f"context: {keep}, {turn}", FACTS, make)
        if factors is not None:
            contexts[keep] = Context(keep, factors)
    return replace(analysis, contexts=tuple(contexts.values()))


def _measured(
    backend: Backend, feeds: Sequence[Feed], analysis: Analysis, keep: float, reference: References
) -> dict[str, float] | None:
    plan = _plan(analysis, keep)
    if plan is None:
        return None
    # Spatial factors are compared with the others' elsewhere: what they add in context is not measured.
    options = [o for o in plan.options if structure_named(o.structure).factors is not SpatialFactors]
    base = _each(lambda option: changes_of(factorize_option(option, analysis, backend), analysis), options)
    dense: dict[str, Change] = {name: (backend.read(name), backend.bias(name)) for name in base}
    ratios: dict[str, float] = {}
    with backend.trials(feeds, base) as run:
        whole = reference.loss(run({}))
        for option in options:
            group = analysis.groups[option.group]
            expected = analysis.loss(group, option.structure, np.array([option.error]), keep)[0]
            if group.weights[0] in base and expected > 0:
                without = reference.loss(run({name: dense[name] for name in group.weights}))
                ratios |= dict.fromkeys(group.weights, max(whole - without, 0.0) / float(expected))
    if not ratios or not np.isfinite(whole):
        return None
    middle = median(ratios.values()) or 1.0
    before = analysis.contexts[0].factors if analysis.contexts else {}
    return {
        record.weight.name: before.get(record.weight.name, 1.0)
        * float(np.clip(ratios.get(record.weight.name, middle) / middle, 1 / MOST, MOST))
        for record in analysis.weights
    }


def replacements_at(backend: Backend, analysis: Analysis, keep: float) -> dict[str, Replacement] | None:
    """What replaces the weights in a model of a keep ratio, as the selector would compress it; None if it cannot."""
    plan = _plan(analysis, keep)
    return None if plan is None else _each(lambda option: factorize_option(option, analysis, backend), plan.options)


def _plan(analysis: Analysis, keep: float) -> Plan | None:
    try:
        return Knapsack().select(analysis, Budget.params(keep))
    except InfeasibleBudget:
        return None


def _each(job: Callable[[Option], Mapping[str, T]], options: Iterable[Option]) -> dict[str, T]:
    """What a job gives for every option, by weight name."""
    found: dict[str, T] = {}
    with threads() as pool:
        for each in pool.map(job, options):
            found |= each
    return found
