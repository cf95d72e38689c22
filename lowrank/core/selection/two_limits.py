"""The knapsack with two limits at once, such as time and bytes: least total error within both.

1. *A price for the second.* For a price `p` the problem `min error + p * other, cost <= limit` is that of `choose`,
   and its bound less `p` times the second limit is a lower bound of the whole. The lowest price at which the second
   limit is met gives a first choice.
2. *Exact filling.* Options whose reduced cost exceeds the distance between that choice and the bound cannot be in a
   better one. Branch and cut (HiGHS) solves what is left; what it cannot finish has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from lowrank.core.linalg.eigen import Vector
from lowrank.core.selection.allocate import MOST_OPTIONS, NODES, Allocation, Costs
from lowrank.core.selection.partition import Choice, Partition, choose, price_of, usable

GROWTH, HIGHEST = 8.0, 1e12
"""By how much the price grows until the second limit is met, and how far from the first one it ends."""
NARROW = 1.02
"""The ratio of prices at which the search between them ends."""


@dataclass(frozen=True, eq=False)
class Limits:
    """What options cost in two ways, and how much of each may be spent."""

    costs: Mapping[str, Costs]
    """Of the options of each group."""
    others: Mapping[str, Costs]
    """The same options in the other unit."""
    limit: int
    other_limit: int

    def spent(self, options: Mapping[str, int]) -> tuple[int, int]:
        """What a choice comes to in both."""
        both = (self.costs, self.others)
        cost, other = (sum(int(each[name][i]) for name, i in options.items()) for each in both)
        return cost, other


def choose_within(limits: Limits, errors: Mapping[str, Vector], blocks: Sequence[Sequence[Partition]]) -> Choice | None:
    """The partition of every block, and the options of its parts, of least total error within both limits; None if
    no choice was found that keeps to both.

    Args:
        limits: both.
        errors: of the options of each group.
        blocks: the partitions of each block.
    """
    first = choose(limits.costs, errors, blocks, limits.limit)
    if first is None or limits.spent(first.options)[1] <= limits.other_limit:
        return first
    bound = first.allocation.bound
    scale = _scale(limits, errors)
    low, high = 0.0, scale
    best: dict[str, int] | None = None
    while True:
        found = _priced(limits, errors, blocks, high)
        bound = max(bound, found.allocation.bound - high * limits.other_limit)
        if limits.spent(found.options)[1] <= limits.other_limit:
            best = found.options
            break
        if high > HIGHEST * scale:
            return None
        low, high = high, high * GROWTH
    while high > NARROW * low and high * HIGHEST > scale:
        middle = (max(low, high / GROWTH**2) * high) ** 0.5
        found = _priced(limits, errors, blocks, middle)
        bound = max(bound, found.allocation.bound - middle * limits.other_limit)
        if limits.spent(found.options)[1] <= limits.other_limit:
            high = middle
            best = min(best, found.options, key=lambda options: _total(errors, options))
        else:
            low = middle
    return _filled(limits, errors, blocks, best, bound, high)


def _scale(limits: Limits, errors: Mapping[str, Vector]) -> float:
    """A price to begin with: all errors for all that may be spent."""
    return max(sum(float(e.max(initial=0.0)) for e in errors.values()), 1e-12) / max(limits.other_limit, 1) * 1e-3


def _priced(
    limits: Limits, errors: Mapping[str, Vector], blocks: Sequence[Sequence[Partition]], price: float
) -> Choice:
    choice = choose(limits.costs, _with(errors, limits.others, price), blocks, limits.limit)
    assert choice is not None
    return choice


def _with(errors: Mapping[str, Vector], others: Mapping[str, Costs], price: float) -> dict[str, Vector]:
    return {name: error + price * others[name] for name, error in errors.items()}


def _total(errors: Mapping[str, Vector], options: Mapping[str, int]) -> float:
    return sum(float(errors[name][i]) for name, i in options.items())


def _filled(
    limits: Limits,
    errors: Mapping[str, Vector],
    blocks: Sequence[Sequence[Partition]],
    options: dict[str, int],
    bound: float,
    price: float,
) -> Choice:
    """The best choice among the options that can be in a better one than what was found, and its bound."""
    splits = [usable(each, limits.costs) for each in blocks]
    adjusted = _with(errors, limits.others, price)
    cost_price, lowest, _ = price_of(limits.costs, adjusted, splits, limits.limit)
    # What an option adds to is the bound at this price alone; others may be higher.
    own = lowest - price * limits.other_limit
    bound = max(bound, own, 0.0)
    error = _total(errors, options)
    exact = error - bound <= 1e-9 * error
    if not exact:
        reduced = {name: adjusted[name] + cost_price * limits.costs[name] for name in errors}
        better, proven = _branched(limits, errors, reduced, splits, (error - own) * (1 + 1e-9))
        if better is not None and _total(errors, better) < error:
            options, error = better, _total(errors, better)
        bound = max(bound, min(proven, error))
        exact = error - bound <= 1e-9 * error
    chosen = np.array(list(options.values()), dtype=np.int64)
    return Choice(options, Allocation(chosen, limits.spent(options)[0], error, bound, exact))


def _branched(
    limits: Limits,
    errors: Mapping[str, Vector],
    reduced: Mapping[str, Vector],
    blocks: Sequence[Sequence[Partition]],
    slack: float,
) -> tuple[dict[str, int] | None, float]:
    """The choice that branch and cut finds among what the reduced costs leave, and the bound that it proves of all
    choices; what is left out is above what was known."""
    best = [min(sum(float(reduced[name].min()) for name in split) for split in splits) for splits in blocks]
    picks: dict[tuple[str, int], None] = {}
    ways: list[Partition] = []
    block_of: list[int] = []
    for number, (splits, least) in enumerate(zip(blocks, best, strict=True)):
        for split in splits:
            floors = {name: float(reduced[name].min()) for name in split}
            left = slack - (sum(floors.values()) - least)
            if left < 0:
                continue
            ways.append(split)
            block_of.append(number)
            for name in split:
                alive = np.flatnonzero(reduced[name] <= floors[name] + left)
                picks |= dict.fromkeys((name, int(i)) for i in alive)
    if len(picks) > MOST_OPTIONS:
        return None, 0.0
    return _solved(limits, errors, list(picks), ways, block_of)


def _solved(
    limits: Limits,
    errors: Mapping[str, Vector],
    picks: list[tuple[str, int]],
    ways: list[Partition],
    block_of: list[int],
) -> tuple[dict[str, int] | None, float]:
    """One way for each block, one option for each of its parts, by branch and cut."""
    import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]

    # scipy carries no types.
    solver = cast("Any", scipy.optimize)
    count, parts, blocks = len(picks), sorted({name for name, _ in picks}), max(block_of) + 1
    rows = np.zeros((blocks + len(parts) + 2, count + len(ways)))
    lower, upper = np.zeros(len(rows)), np.zeros(len(rows))
    for column, number in enumerate(block_of):
        rows[number, count + column] = 1
    lower[:blocks] = upper[:blocks] = 1
    for row, name in enumerate(parts, blocks):
        rows[row, :count] = [float(each == name) for each, _ in picks]
        rows[row, count:] = [-float(name in way) for way in ways]
    for row, (costs, limit) in enumerate(
        ((limits.costs, limits.limit), (limits.others, limits.other_limit)), blocks + len(parts)
    ):
        scale = max(limit, 1)
        rows[row, :count] = [costs[name][i] / scale for name, i in picks]
        lower[row], upper[row] = -np.inf, limit / scale
    objective = np.array([errors[name][i] for name, i in picks] + [0.0] * len(ways))
    unit = float(objective[:count].mean()) or 1.0
    solution = solver.milp(
        objective / unit,
        constraints=solver.LinearConstraint(rows, lower, upper),
        integrality=np.ones(count + len(ways)),
        bounds=solver.Bounds(0, 1),
        options={"mip_rel_gap": 1e-10, "node_limit": NODES},
    )
    proven = float(solution.mip_dual_bound) * unit if solution.mip_dual_bound is not None else 0.0
    if solution.x is None:
        return None, proven
    chosen = {name: i for (name, i), value in zip(picks, solution.x[:count], strict=True) if value > 0.5}
    # A solver's tolerance is no excuse for a cost over the limit.
    cost, other = limits.spent(chosen)
    return (chosen if cost <= limits.limit and other <= limits.other_limit else None), proven
