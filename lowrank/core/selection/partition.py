"""The knapsack over coupled weights: how to split each block, and one option for each part, exactly.

Weights that are coupled can be decided together or apart: an attention block as four weights, as query-key and
value-output products, as a shared basis and an output. Each such partition of a block is one way to have it; what is
chosen is a partition of every block and an option for every part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Vector
from lowrank.core.selection.allocate import Allocation, Costs, Indices, allocate, undominated
from lowrank.core.weight import Group

SHARES = (0.002, 0.02, 0.1)
"""How far from the best an option may be in the first tries, as shares of the first slack."""

Partition = tuple[str, ...]
"""Names of groups that hold every weight of a block once."""


def partitions(groups: Mapping[str, Group]) -> list[list[Partition]]:
    """The blocks of weights that couplings hold together, each with all the ways to split it.

    Example:
        >>> groups = [Group("a", ("a",)), Group("b", ("b",)), Group("c", ("c",)), Group("a+b", ("a", "b"))]
        >>> partitions({g.name: g for g in groups})
        [[('a', 'b'), ('a+b',)], [('c',)]]
    """
    block: dict[str, list[str]] = {}
    for group in groups.values():
        merged: list[str] = []
        for name in group.weights:
            merged += [n for n in block.get(name, [name]) if n not in merged]
        for name in merged:
            block[name] = merged
    order = list(block)
    blocks: list[list[Partition]] = []
    for members in {id(m): m for m in block.values()}.values():
        inside = [g for g in groups.values() if len(g.weights) > 1 and g.weights[0] in members]
        splits: list[Partition] = []
        for chosen in _disjoint(inside):
            taken = {name for group in chosen for name in group.weights}
            rest = [name for name in sorted(members, key=order.index) if name not in taken]
            splits.append((*rest, *(g.name for g in chosen)))
        blocks.append(splits)
    return blocks


def _disjoint(groups: Sequence[Group]) -> list[list[Group]]:
    """All sets of groups that share no weight, the empty one first."""
    sets: list[list[Group]] = [[]]
    for group in groups:
        sets += [
            [*chosen, group] for chosen in sets if not any(set(group.weights) & set(other.weights) for other in chosen)
        ]
    return sets


def cheapest(costs: Mapping[str, Costs], blocks: Sequence[Sequence[Partition]]) -> int:
    """The least that all blocks together can cost."""
    return sum(min(sum(int(costs[n].min()) for n in p) for p in usable(splits, costs)) for splits in blocks)


def usable(splits: Sequence[Partition], costs: Mapping[str, Costs]) -> list[Partition]:
    """The ways to split a block of which every part has options."""
    return [p for p in splits if all(len(costs[name]) for name in p)]


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen: an index of the options of every group that is in use, and how good that is."""

    options: dict[str, int]
    allocation: Allocation


def choose(
    costs: Mapping[str, Costs], errors: Mapping[str, Vector], blocks: Sequence[Sequence[Partition]], limit: int
) -> Choice | None:
    """The partition of every block, and the options of its parts, of least total error within a cost; None if there
    is none.

    At the Lagrangian price of the whole problem options separate; those whose reduced cost exceeds the distance
    between the choice at that price and its bound cannot be in a better one. What they leave of each block is written
    out as one list of options, and `allocate` solves the rest.

    Args:
        costs: of the options of each group; a group without options cannot be chosen.
        errors: the same shapes.
        blocks: the partitions of each block.
        limit: the largest total cost.
    """
    if cheapest(costs, blocks) > limit:
        return None
    splits_of = [usable(splits, costs) for splits in blocks]
    price, bound, slack = price_of(costs, errors, splits_of, limit)
    reduced = {name: errors[name] + price * costs[name] for name in costs}
    # A good choice first, from few options: it shows that most of the others cannot matter.
    best: tuple[list[_Written], Allocation] | None = None
    allocation: Allocation | None = None
    for share in (*SHARES, 1.0):
        written = [_written_out(splits, costs, errors, reduced, share * slack) for splits in splits_of]
        allocation = allocate([w.costs for w in written], [w.errors for w in written], limit, quick=share < 1)
        if allocation is None:
            continue
        if best is None or allocation.error < best[1].error:
            best = written, allocation
        slack = min(slack, max(best[1].error - bound, 0.0))
    assert best is not None and allocation is not None
    # What was proven last was of all options that matter.
    written, allocation = best[0], replace(best[1], bound=max(bound, allocation.bound), exact=allocation.exact)
    options: dict[str, int] = {}
    for block, index in zip(written, allocation.chosen, strict=True):
        options |= block.options(int(index))
    return Choice(options, allocation)


def price_of(
    costs: Mapping[str, Costs], errors: Mapping[str, Vector], blocks: Sequence[Sequence[Partition]], limit: int
) -> tuple[float, float, float]:
    """A price at which the best separate choices keep the limit, the bound on the error that it gives, and how far
    those choices are above it."""

    def at(price: float) -> tuple[int, float, float]:
        """Cost, error and relaxed error of the best choice at a price."""
        best: dict[str, tuple[float, int, float]] = {}
        for name, cost in costs.items():
            if len(cost):
                relaxed = errors[name] + price * cost
                # Of equals the cheapest.
                i = int(np.lexsort((cost, relaxed))[0]) if price == 0 else int(np.argmin(relaxed))
                best[name] = (float(relaxed[i]), int(cost[i]), float(errors[name][i]))
        chosen = [min(tuple(map(sum, zip(*(best[n] for n in p), strict=True))) for p in splits) for splits in blocks]
        return sum(int(c[1]) for c in chosen), sum(c[2] for c in chosen), sum(c[0] for c in chosen)

    cost, error, relaxed = at(0.0)
    if cost <= limit:
        return 0.0, relaxed, error - relaxed
    high = 1e-12
    while at(high)[0] > limit and high < 1e30:
        high *= 16
    low = high / 16 if high > 1e-12 else 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if at(middle)[0] > limit:
            low = middle
        else:
            high = middle
        if high - low <= 1e-9 * high:
            break
    _, error, relaxed = at(high)
    bound = relaxed - high * limit
    return high, bound, max(error - bound, 0.0)


@dataclass(frozen=True, eq=False)
class _Written:
    """The options of a whole block: for each, the partition and the index of every part's option."""

    costs: Costs
    errors: Vector
    splits: Sequence[Partition]
    which: NDArray[np.int64]
    picks: list[Indices]
    """For each partition, parts x options."""
    starts: NDArray[np.int64]

    def options(self, index: int) -> dict[str, int]:
        split = int(self.which[index])
        column = self.picks[split][:, index - int(self.starts[split])]
        return dict(zip(self.splits[split], map(int, column), strict=True))


def _written_out(
    splits: Sequence[Partition],
    costs: Mapping[str, Costs],
    errors: Mapping[str, Vector],
    reduced: Mapping[str, Vector],
    slack: float,
) -> _Written:
    floors = [sum(float(reduced[name].min()) for name in split) for split in splits]
    # Rounding must not lose the choice that the slack was computed from.
    slack = slack * (1 + 1e-9) + 1e-12 * max(abs(min(floors)), 1e-300)
    options: list[tuple[Costs, Vector, Indices]] = []
    within: list[Partition] = []
    for split, floor in zip(splits, floors, strict=True):
        left = slack - (floor - min(floors))
        if left < 0:
            continue
        cost, error, excess = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
        picks = np.zeros((0, 1), np.int64)
        for name in split:
            above = reduced[name] - reduced[name].min()
            alive = np.flatnonzero(above <= left)
            excess = (excess[:, None] + above[alive]).ravel()
            cost = (cost[:, None] + costs[name][alive]).ravel()
            error = (error[:, None] + errors[name][alive]).ravel()
            picks = np.concatenate([np.repeat(picks, len(alive), 1), np.tile(alive, picks.shape[1])[None]])
            keep = undominated(cost, error, np.flatnonzero(excess <= left))
            cost, error, excess, picks = cost[keep], error[keep], excess[keep], picks[:, keep]
        options.append((cost, error, picks))
        within.append(split)
    lengths = [len(cost) for cost, _, _ in options]
    return _Written(
        np.concatenate([cost for cost, _, _ in options]),
        np.concatenate([error for _, error, _ in options]),
        within,
        np.repeat(np.arange(len(options)), lengths),
        [picks for _, _, picks in options],
        np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
    )
