"""Selectors: policies from an Analysis and a Budget to a Plan. Each is a frozen dataclass with one method.

`Knapsack` is the default. The others are simpler policies that the literature uses, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis
from lowrank.core.blocks import cheapest, choose, partitions
from lowrank.core.budget import NAMES, Budget
from lowrank.core.cost import spent
from lowrank.core.formats import FORMATS
from lowrank.core.linalg import Vector
from lowrank.core.plan import Plan, dense_cost, in_order, share_of
from lowrank.core.rounding import BITS, file_bytes
from lowrank.core.selectors import selector_name
from lowrank.core.structures import ROUNDED, STRUCTURES, Curve, Dense, Option, TwoFactor, stored_in
from lowrank.core.timings import Timings
from lowrank.core.weight import Group, Weight
from lowrank.errors import InfeasibleBudget, TimingError


class Selector(Protocol):
    """A policy from Analysis and Budget to ranks."""

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan for this budget.

        Raises:
            InfeasibleBudget: if no ranks meet it; the message says the smallest that can be met.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Knapsack:
    """Least predicted error of the model's output for the cost, over all structures and ranks of all blocks at once.

    The prediction is a sum over groups of what cutting each was measured to do to the model's output (`loss_of`). The
    choice is exact for it (see `choose`); the sum itself is a heuristic, as errors of different layers are taken as
    additive.

    Under an error budget every weight takes its cheapest option within the error, by itself: the errors of bonded
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
            least: list[Option] = [min(options, key=_cost) for options in within]
            return plan_of(self, analysis, budget, least)
        if budget.kind in ("latency", "milliseconds"):
            return self._within_time(analysis, budget)
        if budget.kind == "size":
            return self._within_size(analysis, budget)
        curves = {name: self._curves(group, analysis) for name, group in analysis.groups.items()}
        weights = {n: [analysis[w].weight for w in group.weights] for n, group in analysis.groups.items()}
        costs = {
            name: np.concatenate([spent(budget.kind, c.structure, c.ranks, c.costs, weights[name]) for c in found])
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
            raise _infeasible(analysis, budget, cheapest(costs, blocks) / max(whole, 1))
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
                f"takes {least * whole / 1e6:.2f} ms; the smallest budget that can be met is {_round_up(least)}"
            )
        gap = chosen.allocation.gap / chosen.allocation.error if chosen.allocation.error > 0 else 0.0
        options = [_at(n, curves[n], i) for n, i in chosen.options.items()]
        share = (rest + sum(int(costs[n][i]) for n, i in chosen.options.items())) / max(whole, 1)
        slow = [o.group for o in options if o.structure == "dense" and costs[o.group].min() >= costs[o.group][0]]
        notes = (f"{len(slow)} weights stay dense, as nothing of them is faster here: {', '.join(slow[:4])}",)
        return replace(plan_of(self, analysis, budget, options, gap), share=share, notes=notes if slow else ())

    def _within_size(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error, structures, ranks and types, whose file has at most so many bytes."""
        limit = int(budget.limit) - self.overhead
        weights = {n: [analysis[w].weight for w in group.weights] for n, group in analysis.groups.items()}
        curves = {name: self._stored(group, analysis) for name, group in analysis.groups.items()}
        costs = {
            name: np.ceil(
                np.concatenate([file_bytes(c.structure, c.ranks, c.costs, weights[name], c.dtype) for c in found])
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
        rounded = [s for s in ROUNDED if self.structures is None or s.name in self.structures]
        found = [
            stored_in(curve, group, analysis, dtype) for curve in self._curves(group, analysis) for dtype in self.dtypes
        ]
        return found + [
            stored_in(structure.curve(group, analysis, self.multiple), group, analysis, dtype)
            for structure in rounded
            for dtype in self.dtypes
            if dtype in FORMATS
        ]

    def _curves(self, group: Group, analysis: Analysis, step: int = 1) -> list[Curve]:
        """All on offer, ranks in steps but for the few channels of a head."""
        on_offer = [s for s in STRUCTURES if s.name == "dense" or self.structures is None or s.name in self.structures]
        steps = [self.multiple if s.name in HEADED else math.lcm(self.multiple, step) for s in on_offer]
        return [structure.curve(group, analysis, each) for structure, each in zip(on_offer, steps, strict=True)]

    def _options(self, group: Group, analysis: Analysis) -> list[Option]:
        return [c.option(group.name, i) for c in self._curves(group, analysis) for i in range(len(c.ranks))]


ROUNDS = 2
HEADED = ("product", "rotary")
NANO = 1000
"""Nanoseconds in a microsecond: costs are whole numbers."""


def timed(curve: Curve, timings: Timings, group: Group, weights: Sequence[Weight]) -> tuple[Curve, Vector]:
    """What of a curve there are times for, and these."""
    times = timings.of(curve.structure, curve.ranks, group, weights)
    known = np.isfinite(times)
    return Curve(curve.structure, curve.ranks[known], curve.costs[known], curve.errors[known]), times[known]


def share_in_time(options: Sequence[Option], analysis: Analysis, timings: Timings) -> float:
    """What some options leave of the time of the dense model."""

    def time_of(name: str, structure: str, rank: int) -> float:
        group = analysis.groups[name]
        weights = [analysis[weight].weight for weight in group.weights]
        return float(timings.of(structure, np.array([rank]), group, weights)[0])

    dense = sum(time_of(group.name, "dense", 0) for group in analysis.singles)
    whole = timings.whole or dense
    return (whole - dense + sum(time_of(o.group, o.structure, o.rank) for o in options)) / max(whole, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """The same keep ratio for every weight: `r = floor(keep * rows cols / (rows + cols))`."""

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one keep ratio everywhere."""
        if budget.kind != "params":
            raise InfeasibleBudget("uniform ranks need --budget, a share of parameters; use another selector")
        chosen: list[Option] = []
        for group in analysis.singles:
            dense = Dense().curve(group, analysis, self.multiple)
            limit = budget.limit * int(dense.costs[0])
            curve = TwoFactor().curve(group, analysis, self.multiple)
            within = np.flatnonzero(curve.costs <= limit)
            if dense.costs[0] <= limit:
                chosen.append(dense.option(group.name, 0))
            elif len(within):
                chosen.append(curve.option(group.name, int(within[-1])))
            else:
                smallest = max(_uniform_minimum(g, analysis, self.multiple) for g in analysis.singles)
                raise InfeasibleBudget(
                    f"{group.name}: no rank keeps {budget.limit:g} of it; the smallest budget that uniform ranks "
                    f"can meet is "
                    f"{_round_up(smallest)}; the default selector can go lower"
                )
        return plan_of(self, analysis, budget, chosen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """One share of plain spectral energy for all weights, as large as the budget allows."""

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one energy threshold everywhere."""
        return _one_tolerance(self, analysis, budget, lambda name: analysis[name].plain.tail_energy)


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeError:
    """One relative output error for all weights, as small as the budget allows.

    Surrogate-optimal in the sense of PGSVD (2025): one tolerance for every layer.
    """

    multiple: int = 1

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan with one error tolerance everywhere."""
        return _one_tolerance(self, analysis, budget, _output_error(analysis))


def _cost(option: Option) -> int:
    return option.cost


def _at(group: str, curves: Sequence[Curve], index: int) -> Option:
    """The option at an index of several curves in a row."""
    for curve in curves:
        if index < len(curve.ranks):
            return curve.option(group, index)
        index -= len(curve.ranks)
    raise IndexError(index)


def _one_tolerance(selector: Selector, analysis: Analysis, budget: Budget, lost: Callable[[str], Vector]) -> Plan:
    """The least tolerance at which every weight's cheapest option within it meets the budget."""
    multiple: int = getattr(selector, "multiple", 1)
    dense = [Dense().curve(group, analysis, multiple) for group in analysis.singles]
    curves = [TwoFactor().curve(group, analysis, multiple) for group in analysis.singles]
    if budget.kind in ("bytes", "macs", "latency", "milliseconds", "size"):
        raise InfeasibleBudget(
            f"a budget of {NAMES[budget.kind]} is for the knapsack; other selectors count parameters"
        )
    if budget.kind == "error":
        # The budget is about output errors, whatever the policy compares otherwise.
        lost = _output_error(analysis)
    losses = [lost(g.weights[0])[c.ranks] for g, c in zip(analysis.singles, curves, strict=True)]

    def at(tolerance: float) -> list[Option]:
        pairs = zip(analysis.singles, dense, curves, losses, strict=True)
        return [_cheapest(group, d, c, loss, tolerance) for group, d, c, loss in pairs]

    if budget.kind == "error":
        return plan_of(selector, analysis, budget, at(budget.limit**2))
    limit = int(budget.limit * analysis.dense_params)
    # Cost only changes at a value of some curve: bisect over those values.
    steps = np.unique(np.concatenate([[0.0, 1.0], *losses]))
    low, high = 0, len(steps) - 1
    if sum(o.cost for o in at(float(steps[high]))) > limit:
        least = sum(o.cost for o in at(float(steps[high])))
        raise _infeasible(analysis, budget, least / max(analysis.dense_params, 1))
    while low < high:
        middle = (low + high) // 2
        if sum(o.cost for o in at(float(steps[middle]))) <= limit:
            high = middle
        else:
            low = middle + 1
    return plan_of(selector, analysis, budget, at(float(steps[high])))


def _output_error(analysis: Analysis) -> Callable[[str], Vector]:
    return lambda name: analysis[name].error_curve


def _cheapest(group: Group, dense: Curve, curve: Curve, loss: Vector, tolerance: float) -> Option:
    within = np.flatnonzero(loss <= tolerance)
    return curve.option(group.name, int(within[0])) if len(within) else dense.option(group.name, 0)


def _infeasible(analysis: Analysis, budget: Budget, smallest: float) -> InfeasibleBudget:
    name = NAMES["params" if budget.kind == "error" else budget.kind]
    return InfeasibleBudget(
        f"a budget of {budget.limit:g} cannot be met: with every weight at its smallest the {len(analysis.weights)} "
        f"targeted weights still hold {smallest:.6f} of their {name}; the smallest budget that can be met is "
        f"{_round_up(smallest)}"
    )


def _uniform_minimum(group: Group, analysis: Analysis, multiple: int) -> float:
    curve = TwoFactor().curve(group, analysis, multiple)
    return float(curve.costs[0]) / analysis.params(group) if len(curve.costs) else 1.0


def _round_up(ratio: float, digits: int = 4) -> float:
    return float(np.ceil(ratio * 10**digits) / 10**digits)


def plan_of(
    selector: Selector, analysis: Analysis, budget: Budget, options: Sequence[Option], gap: float | None = None
) -> Plan:
    """The plan that a selector has come to.

    Args:
        selector: a frozen dataclass; its fields are kept in the plan.
        analysis: what it chose from.
        budget: what was asked for.
        options: one for each group that it splits the weights into.
        gap: how far from optimal it can be, as a share of its error, if that is known.
    """
    settings: dict[str, Any] = {k: v for k, v in asdict(selector).items() if v is not None}  # pyright: ignore[reportArgumentType, reportCallIssue]
    if budget.kind != "size":
        # What only a budget of bytes of a file looks at.
        settings = {k: v for k, v in settings.items() if k not in ("dtypes", "overhead")}
    if "timings" in settings:
        # Where they are from; they themselves are a file of their own.
        settings["timings"] = {k: v for k, v in settings["timings"].items() if k != "points"}
    return Plan(
        analysis=analysis.fingerprint,
        budget=budget,
        selector={"type": selector_name(selector), **settings},
        options=in_order(options, analysis),
        dense_cost=analysis.dense_params,
        share=share_of(budget, options, analysis),
        gap=gap,
    )
