"""Selectors: policies from an Analysis and a Budget to a Plan. Each is a frozen dataclass with one method.

`Knapsack` is the default. The others are simpler policies that the literature uses, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis
from lowrank.core.budget import Budget
from lowrank.core.linalg.eigen import Vector
from lowrank.core.plan import Plan, dense_cost
from lowrank.core.rounding.cost import BITS
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.selection.partition import cheapest, choose, partitions
from lowrank.core.selection.selector import infeasible, plan_of, round_up
from lowrank.core.selection.timings import Timings
from lowrank.core.structures import structure_named, structures
from lowrank.core.structures.base import Curve, Option, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.weight import Group, Weight
from lowrank.errors import InfeasibleBudget, TimingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Knapsack:
    """Least predicted error of the model's output for the cost, over all structures and ranks of all blocks at once.

    The prediction is a sum over groups of what cutting each was measured to do to the model's output (`loss_of`). The
    choice is exact for it (see `choose`); the sum itself is a heuristic, as errors of different layers are taken as
    additive.

    Under an error budget every weight takes its cheapest option within the error, by itself: the errors of coupled
    weights are those of what they give together.
    """

    multiple: int = 1
    structures: tuple[str, ...] | None = None
    """Those on offer, None for all; weights can always stay dense."""
    timings: Timings | None = None
    """What a budget of time is spent on."""
    dtypes: tuple[str, ...] = tuple(BITS)
    """Types on offer, for a budget of a file's size."""
    overhead: int = 0
    """Bytes of a file that no choice changes, for a budget of its size."""

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error within the budget."""
        if budget.kind == "error":
            curves = [self._options(group, analysis) for group in analysis.singles]
            within = [[o for o in c if o.error <= budget.limit**2] for c in curves]
            least: list[Option] = [min(options, key=lambda option: option.cost) for options in within]
            return plan_of(self, analysis, budget, least)
        if budget.kind in ("latency", "milliseconds"):
            return self._within_time(analysis, budget)
        if budget.kind == "size":
            return self._within_size(analysis, budget)
        curves = {name: self._curves(group, analysis) for name, group in analysis.groups.items()}
        weights = {n: [analysis[w].weight for w in group.weights] for n, group in analysis.groups.items()}
        costs = {
            name: np.concatenate(
                [structure_named(c.structure).spent(budget.kind, c.ranks, c.costs, weights[name]) for c in found]
            )
            for name, found in curves.items()
        }
        losses = {
            name: np.concatenate(
                [analysis.loss(analysis.groups[name], c.structure, c.errors, budget.limit) for c in found]
            )
            for name, found in curves.items()
        }
        blocks = partitions(analysis.groups)
        whole = dense_cost(budget.kind, analysis)
        found = choose(costs, losses, blocks, int(budget.limit * whole))
        if found is None:
            raise infeasible(analysis, budget, cheapest(costs, blocks) / max(whole, 1))
        gap = found.allocation.gap / found.allocation.error if found.allocation.error > 0 else 0.0
        return plan_of(self, analysis, budget, [_at(n, curves[n], i) for n, i in found.options.items()], gap)

    def _within_time(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error whose predicted time is within a share of the dense model's."""
        timings = self.timings
        if timings is not None:
            budget = budget.of_whole(None if timings.whole is None else timings.whole / 1e3)
        if timings is None:
            raise TimingError("a budget of time needs timings; measure them with `lowrank bench MODEL --table FILE`")
        weights = {n: [analysis[w].weight for w in group.weights] for n, group in analysis.groups.items()}
        curves: dict[str, list[Curve]] = {}
        costs: dict[str, NDArray[np.int64]] = {}
        losses: dict[str, Vector] = {}
        for name, group in analysis.groups.items():
            found = [timed(c, timings, group, weights[name]) for c in self._curves(group, analysis, timings.step)]
            curves[name] = [curve for curve, _ in found]
            costs[name] = np.concatenate([np.rint(NANO * times).astype(np.int64) for _, times in found])
            losses[name] = np.concatenate(
                [analysis.loss(group, c.structure, c.errors, budget.limit) for c in curves[name]]
            )
        dense = sum(int(costs[group.name][0]) for group in analysis.singles)
        whole = dense if timings.whole is None else int(NANO * timings.whole)
        rest = whole - dense
        if rest < 0:
            raise TimingError(
                f"the table's operators take {dense / 1e6:.2f} ms together and the whole model {whole / 1e6:.2f}: it "
                "was measured for another model, or on a busy machine; measure again"
            )
        blocks = partitions(analysis.groups)
        chosen = choose(costs, losses, blocks, int(budget.limit * whole) - rest)
        if chosen is None:
            least = (rest + cheapest(costs, blocks)) / max(whole, 1)
            raise InfeasibleBudget(
                f"the model cannot run in {budget.limit:.3g} of its time: with every weight at its fastest it still "
                f"takes {least * whole / 1e6:.2f} ms; the smallest budget that can be met is {round_up(least)}"
            )
        gap = chosen.allocation.gap / chosen.allocation.error if chosen.allocation.error > 0 else 0.0
        options = [_at(n, curves[n], i) for n, i in chosen.options.items()]
        share = (rest + sum(int(costs[n][i]) for n, i in chosen.options.items())) / max(whole, 1)
        slow = [
            o.group
            for o in options
            if structure_named(o.structure).is_dense and costs[o.group].min() >= costs[o.group][0]
        ]
        notes = (f"{len(slow)} weights stay dense, as nothing of them is faster here: {', '.join(slow[:4])}",)
        return replace(plan_of(self, analysis, budget, options, gap), share=share, notes=notes if slow else ())

    def _within_size(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error, structures, ranks and types, whose file has at most so many bytes."""
        limit = int(budget.limit) - self.overhead
        weights = {n: [analysis[w].weight for w in group.weights] for n, group in analysis.groups.items()}
        curves = {name: self._stored(group, analysis) for name, group in analysis.groups.items()}
        costs = {
            name: np.ceil(
                np.concatenate(
                    [structure_named(c.structure).file_bytes(c.ranks, c.costs, weights[name], c.dtype) for c in found]
                )
            ).astype(np.int64)
            for name, found in curves.items()
        }
        blocks = partitions(analysis.groups)
        if cheapest(costs, blocks) > limit:
            least = self.overhead + cheapest(costs, blocks)
            raise InfeasibleBudget(
                f"no file of {int(budget.limit):,} bytes can hold the model: with every weight at its smallest it has "
                f"{least:,}, of which {self.overhead:,} are of what is not chosen; give --size {least / 1e6:.2f}MB or "
                "more, or more --targets"
            )
        # How much a weight matters depends on how small the others are, which is known when they have been chosen.
        keep = min(1.0, max(limit, 1) / (BITS["int4"] / 8 * analysis.dense_params))
        plans: list[Plan] = []
        for _ in range(ROUNDS):
            losses = {
                name: np.concatenate([analysis.loss(analysis.groups[name], c.structure, c.errors, keep) for c in found])
                for name, found in curves.items()
            }
            chosen = choose(costs, losses, blocks, limit)
            assert chosen is not None
            gap = chosen.allocation.gap / chosen.allocation.error if chosen.allocation.error > 0 else 0.0
            options = [_at(n, curves[n], i) for n, i in chosen.options.items()]
            nbytes = self.overhead + sum(int(costs[n][i]) for n, i in chosen.options.items())
            plans.append(replace(plan_of(self, analysis, budget, options, gap), share=float(nbytes)))
            keep = min(1.0, max(plans[-1].keep_ratio, 1e-3))
        return plans[-1]

    def _stored(self, group: Group, analysis: Analysis) -> list[Curve]:
        """All on offer in all types."""
        residuals = [
            structure.curve(group, analysis, self.multiple) for structure in self._on_offer() if structure.is_residual
        ]
        return [
            structure_named(curve.structure).stored_in(curve, group, analysis, dtype)
            for curves, dtypes in (
                (self._curves(group, analysis), self.dtypes),
                (residuals, [dtype for dtype in self.dtypes if dtype in FORMATS]),
            )
            for curve in curves
            for dtype in dtypes
        ]

    def _curves(self, group: Group, analysis: Analysis, step: int = 1) -> list[Curve]:
        """All on offer, ranks in steps but for the few channels of a head."""
        return [
            structure.curve(group, analysis, self.multiple if structure.per_head else math.lcm(self.multiple, step))
            for structure in self._on_offer()
            if not structure.is_residual
        ]

    def _on_offer(self) -> list[Structure]:
        return [s for s in structures() if s.is_dense or self.structures is None or s.name in self.structures]

    def _options(self, group: Group, analysis: Analysis) -> list[Option]:
        return [c.option(group.name, i) for c in self._curves(group, analysis) for i in range(len(c.ranks))]


ROUNDS = 2
NANO = 1000
"""Nanoseconds in a microsecond: costs are whole numbers."""


def timed(curve: Curve, timings: Timings, group: Group, weights: Sequence[Weight]) -> tuple[Curve, Vector]:
    """What of a curve there are times for, and these."""
    times = structure_named(curve.structure).times(timings, curve.ranks, group, weights)
    known = np.isfinite(times)
    return Curve(curve.structure, curve.ranks[known], curve.costs[known], curve.errors[known]), times[known]


def share_in_time(options: Sequence[Option], analysis: Analysis, timings: Timings) -> float:
    """What some options leave of the time of the dense model."""

    def time_of(option: Option) -> float:
        group = analysis.groups[option.group]
        weights = [analysis[weight].weight for weight in group.weights]
        return float(structure_named(option.structure).times(timings, np.array([option.rank]), group, weights)[0])

    dense = sum(time_of(Dense().at(group, analysis, 0)) for group in analysis.singles)
    whole = timings.whole or dense
    return (whole - dense + sum(map(time_of, options))) / max(whole, 1e-9)


def _at(group: str, curves: Sequence[Curve], index: int) -> Option:
    """The option at an index of several curves in a row."""
    for curve in curves:
        if index < len(curve.ranks):
            return curve.option(group, index)
        index -= len(curve.ranks)
    raise IndexError(index)
