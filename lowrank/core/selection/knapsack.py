"""The default selector: the plan of least predicted error for a budget of any kind, by an exact knapsack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowrank.core.analysis import Analysis
from lowrank.core.budget import TIMED, Budget
from lowrank.core.listing import listed
from lowrank.core.plan import Plan, dense_cost
from lowrank.core.rounding.cost import BITS
from lowrank.core.rounding.formats import FORMATS
from lowrank.core.selection.allocate import Costs
from lowrank.core.selection.partition import cheapest, choose, partitions
from lowrank.core.selection.selector import infeasible, plan_of, round_up
from lowrank.core.selection.timings import COMPUTED, Timings
from lowrank.core.selection.two_limits import Limits, choose_within
from lowrank.core.structures import structure_named, structures
from lowrank.core.structures.base import Curve, Option, Structure
from lowrank.core.structures.dense import Dense
from lowrank.core.weight import Group
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
    """Types on offer, for a budget of a file's size, or of a speed."""
    overhead: int = 0
    """Bytes of a file that no choice changes, for a budget of its size."""

    def select(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error within the budget."""
        if budget.kind == "error":
            curves = [self._options(group, analysis) for group in analysis.singles]
            within = [[o for o in c if o.error <= budget.limit**2] for c in curves]
            least: list[Option] = [min(options, key=lambda option: option.cost) for options in within]
            return plan_of(self, analysis, budget, least)
        if budget.kind in TIMED:
            return self._within_time(analysis, budget)
        if budget.kind == "size":
            return self._within_size(analysis, budget)
        unit = budget.kind

        def priced(group: Group) -> list[tuple[Curve, Costs]]:
            weights = analysis.weights_of(group)
            curves = self._curves(group, analysis)
            return [(c, structure_named(c.structure).spent(unit, c, weights)) for c in curves]

        offers = _Offers(analysis, priced)
        whole = dense_cost(budget.kind, analysis)
        chosen = offers.best(int(budget.limit * whole), budget.limit)
        if chosen is None:
            raise infeasible(analysis, budget, offers.least / max(whole, 1))
        return plan_of(self, analysis, budget, chosen.options, chosen.gap)

    def _within_time(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error whose predicted time is within a share of the dense model's, and whose file within
        its bytes, if it has such a limit."""
        timings = self.timings
        if timings is None:
            raise TimingError("a budget of time needs timings; measure them with `lowrank bench MODEL --table FILE`")
        budget = budget.of_whole(None if timings.whole is None else timings.whole / 1e3)
        offers = _Offers(analysis, lambda group: self._timed(group, analysis, timings, budget))
        dense = sum(int(offers.costs[group.name][0]) for group in analysis.singles)
        whole = dense if timings.whole is None else int(NANO * timings.whole)
        if timings.whole is None and (other := next((t for t in timings.others if t.whole is not None), None)):
            # What is no product takes as long in a model of another type.
            products = sum(other.dense(record.weight) for record in analysis.weights)
            whole = dense + int(NANO * max((other.whole or 0.0) - products, 0.0))
        rest = whole - dense
        if rest < 0:
            raise TimingError(
                f"the table's operators take {dense / 1e6:.2f} ms together and the whole model {whole / 1e6:.2f}: it "
                "was measured for another model, or on a busy machine; measure again"
            )
        limit = int(budget.time_share * whole) - rest
        if offers.least > limit:
            raise _too_fast(budget, (rest + offers.least) / max(whole, 1), whole)
        chosen = offers.best(limit, budget.time_share)
        assert chosen is not None
        if budget.kind == "speedup":
            # Where types are chosen, too, more numbers are left than time.
            chosen = offers.best(limit, _keep_of(chosen, analysis))
            assert chosen is not None
        if budget.file_bytes is not None:
            chosen = self._in_bytes(offers, chosen, analysis, limit, budget)
        costs = offers.costs
        slow = [
            o.group
            for o in chosen.options
            if structure_named(o.structure).is_dense and costs[o.group].min() >= costs[o.group][0]
        ]
        notes = (f"{len(slow)} weights stay dense, as no structure is faster than they are here: {listed(slow)}",)
        plan = plan_of(self, analysis, budget, chosen.options, chosen.gap)
        return replace(plan, share=(rest + chosen.cost) / max(whole, 1), notes=notes if slow else ())

    def _timed(self, group: Group, analysis: Analysis, timings: Timings, budget: Budget) -> list[tuple[Curve, Costs]]:
        """All on offer that there are times for; in all types of the table where these are chosen, too."""
        if budget.kind != "speedup":
            return [timed(curve, timings, group, analysis) for curve in self._curves(group, analysis, timings.step)]
        # Numbers of fewer bits are computed with in eight: they are smaller, and not faster.
        wanted = [d for d in self.dtypes if budget.file_bytes is not None or COMPUTED.get(d) == d]
        dtypes = [dtype for dtype in wanted if timings.of(dtype) is not None]
        curves = self._stored(group, analysis, dtypes, timings.step)
        return [timed(c, table, group, analysis) for c in curves if (table := timings.of(c.dtype)) is not None]

    def _in_bytes(self, offers: _Offers, fastest: _Chosen, analysis: Analysis, limit: int, budget: Budget) -> _Chosen:
        """The best choice within a time whose file is within its bytes, too."""
        assert budget.file_bytes is not None
        sizes = {
            name: np.concatenate([_file_bytes(curve, group, analysis) for curve in offers.curves[name]])
            for name, group in analysis.groups.items()
        }
        most = int(budget.file_bytes) - self.overhead
        chosen = offers.best(limit, _keep_of(fastest, analysis), (sizes, most))
        if chosen is None:
            least = self.overhead + cheapest(sizes, offers.blocks)
            raise InfeasibleBudget(
                f"no choice is {budget.limit:g} times as fast and has {int(budget.file_bytes):,} bytes: the smallest "
                f"file of any speed has {least:,}, of which {self.overhead:,} are tensors that are not targeted; give "
                "a larger --size or a smaller --speedup, or more --targets"
            )
        return chosen

    def _within_size(self, analysis: Analysis, budget: Budget) -> Plan:
        """The plan of least error, structures, ranks and types, whose file has at most so many bytes."""
        limit = int(budget.limit) - self.overhead

        def priced(group: Group) -> list[tuple[Curve, Costs]]:
            return [(c, _file_bytes(c, group, analysis)) for c in self._stored(group, analysis, self.dtypes)]

        offers = _Offers(analysis, priced)
        if offers.least > limit:
            least = self.overhead + offers.least
            raise InfeasibleBudget(
                f"no file of {int(budget.limit):,} bytes can hold the model: with every weight at its smallest it has "
                f"{least:,}, of which {self.overhead:,} are tensors that are not targeted; give --size "
                f"{least / 1e6:.2f}MB or more, or more --targets"
            )
        # How much a weight matters depends on how small the others are, which is known when they have been chosen.
        keep = min(1.0, max(limit, 1) / (min(BITS.values()) / 8 * analysis.dense_params))
        chosen = offers.best(limit, keep)
        assert chosen is not None
        chosen = offers.best(limit, _keep_of(chosen, analysis))
        assert chosen is not None
        plan = plan_of(self, analysis, budget, chosen.options, chosen.gap)
        return replace(plan, share=float(self.overhead + chosen.cost))

    def _stored(self, group: Group, analysis: Analysis, dtypes: Sequence[str], step: int = 1) -> list[Curve]:
        """All on offer in some types, ranks in steps."""
        residuals = [
            structure.curve(group, analysis, self.multiple) for structure in self._on_offer() if structure.is_residual
        ]
        return [
            structure_named(curve.structure).stored_in(curve, group, analysis, dtype)
            for curves, types in (
                (self._curves(group, analysis, step), dtypes),
                (residuals, [dtype for dtype in dtypes if dtype in FORMATS]),
            )
            for curve in curves
            for dtype in types
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


NANO = 1000
"""Nanoseconds in a microsecond: costs are whole numbers."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An option for each group of a partition."""

    options: list[Option]
    cost: int
    gap: float
    """How far the error can be from the least possible one, as a share of it."""


class _Offers:
    """All options of all groups, with their costs in the unit of a budget."""

    def __init__(self, analysis: Analysis, priced: Callable[[Group], list[tuple[Curve, Costs]]]) -> None:
        self.analysis, self.blocks = analysis, partitions(analysis.groups)
        self.curves: dict[str, list[Curve]] = {}
        self.costs: dict[str, Costs] = {}
        for name, group in analysis.groups.items():
            curves, costs = zip(*priced(group), strict=True)
            self.curves[name], self.costs[name] = list(curves), np.concatenate(costs)

    @property
    def least(self) -> int:
        """What everything costs at its smallest."""
        return cheapest(self.costs, self.blocks)

    def best(self, limit: int, keep: float, also: tuple[Mapping[str, Costs], int] | None = None) -> _Chosen | None:
        """The options of least error within a limit, in a model of this keep ratio; None if there are none.

        Args:
            limit: of the costs.
            keep: the keep ratio.
            also: the costs of the same options in another unit, and their limit.
        """
        groups, loss = self.analysis.groups, self.analysis.loss
        losses = {
            name: np.concatenate([loss(groups[name], c.structure, c.errors, keep) for c in curves])
            for name, curves in self.curves.items()
        }
        choice = (
            choose(self.costs, losses, self.blocks, limit)
            if also is None
            else choose_within(Limits(self.costs, also[0], limit, also[1]), losses, self.blocks)
        )
        if choice is None:
            return None
        options = [_at(name, self.curves[name], i) for name, i in choice.options.items()]
        cost = sum(int(self.costs[name][i]) for name, i in choice.options.items())
        gap, error = choice.allocation.gap, choice.allocation.error
        return _Chosen(options, cost, gap / error if error > 0 else 0.0)


def _keep_of(chosen: _Chosen, analysis: Analysis) -> float:
    """The keep ratio that some options come to."""
    return min(1.0, max(sum(o.cost for o in chosen.options) / analysis.dense_params, 1e-3))


def bytes_of(options: Iterable[Option], analysis: Analysis) -> int:
    """About the bytes that some options have in a file, without what no choice changes."""
    return sum(int(_file_bytes(o.curve, analysis.groups[o.group], analysis)[0]) for o in options)


def _too_fast(budget: Budget, least: float, whole: int) -> InfeasibleBudget:
    """The error of a time that even the fastest ranks, which take this share, do not reach."""
    asked, most = f"{budget.limit:.3g} of the dense time", f"the smallest possible budget is {round_up(least)}"
    if budget.kind == "speedup":
        asked, most = (
            f"{budget.limit:.3g} times the dense model's speed",
            f"at most --speedup {1 / round_up(least):.3g}",
        )
    return InfeasibleBudget(
        f"no choice of ranks reaches {asked}: with every weight at its fastest the model takes "
        f"{least * whole / 1e6:.2f} ms; {most}"
    )


def _file_bytes(curve: Curve, group: Group, analysis: Analysis) -> Costs:
    """Whole bytes of a file at each point of a curve."""
    size = structure_named(curve.structure).file_bytes(curve, analysis.weights_of(group))
    return np.ceil(size).astype(np.int64)


def timed(curve: Curve, timings: Timings, group: Group, analysis: Analysis) -> tuple[Curve, Costs]:
    """What of a curve there are times for, and these in nanoseconds."""
    times = structure_named(curve.structure).times(timings, curve.ranks, group, analysis.weights_of(group))
    known = np.isfinite(times)
    curve = replace(curve, ranks=curve.ranks[known], costs=curve.costs[known], errors=curve.errors[known])
    return curve, np.rint(NANO * times[known]).astype(np.int64)


def share_in_time(options: Sequence[Option], analysis: Analysis, timings: Timings) -> float:
    """What some options leave of the time of the dense model in the table's first type; each is computed in its own, if
    types were chosen.

    Raises:
        TimingError: if the table has none of an option's type.
    """

    def time_of(option: Option, table: Timings) -> float:
        group, structure = analysis.groups[option.group], structure_named(option.structure)
        return float(structure.times(table, np.array([option.rank]), group, analysis.weights_of(group))[0])

    def table_of(option: Option) -> Timings:
        found = timings if option.dtype == "float32" else timings.of(option.dtype)
        if found is None:
            raise TimingError(
                f"{option.group} is stored in {option.dtype}, and the table was measured for {timings.dtype} alone; "
                "measure again with `lowrank bench MODEL --table FILE`"
            )
        return found

    dense = sum(time_of(Dense().at(group, analysis, 0), timings) for group in analysis.singles)
    whole = timings.whole or dense
    return (whole - dense + sum(time_of(option, table_of(option)) for option in options)) / max(whole, 1e-9)


def _at(group: str, curves: Sequence[Curve], index: int) -> Option:
    """The option at an index of several curves in a row."""
    for curve in curves:
        if index < len(curve.ranks):
            return curve.option(group, index)
        index -= len(curve.ranks)
    raise IndexError(index)
