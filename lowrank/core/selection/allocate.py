"""The knapsack: one option for each group, least total error within a cost. Exact, with its bound.

Minimise `sum_g error[g, c_g]` subject to `sum_g cost[g, c_g] <= limit`, one choice `c_g` a group.

1. *Lagrangian.* For a price `mu` the groups separate, and `L(mu) = sum_g min_c (error + mu cost) - mu limit` is a
   lower bound. Its maximum over `mu` lies at a vertex of the groups' lower convex hulls, found by merging all hull
   edges in order of slope. This also gives a first feasible choice.
2. *Exact filling.* An option whose reduced cost `error + mu cost - min_c (...)` exceeds the distance between the
   first choice and the bound cannot be in a better one (Pisinger 1995, "A minimal algorithm for the
   multiple-choice knapsack problem"). What is left is small; dynamic programming over (cost, error) states, with
   dominated and bounded-out states dropped, ends at the optimum. Where it would be long, branch and cut (HiGHS) takes
   over, and what neither can finish has a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Vector

Costs = NDArray[np.int64]
Indices = NDArray[np.int64]

# States that one pass of the dynamic programme may keep. A narrow pass drops states and so may miss the optimum, but
# what it finds lowers the bar for the next one; most problems are small enough after the first for the second to be
# exact.
WIDTHS = (1_000, 5_000, 20_000)
WORK = 12_000_000
"""States that all passes together may look at: a second or two."""
NEARLY = 1e-4
"""A relative gap below which branch and cut is not worth its seconds."""
MOST_OPTIONS, NODES = 10_000, 2_000
"""The most options and nodes that branch and cut may take: some seconds more. They are counted, not timed, so that
results repeat."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """The index chosen for each group, what it comes to, and how far from the best it can be at most."""

    chosen: Indices
    cost: int
    error: float
    bound: float
    """No choice within the limit has a smaller error than this."""
    exact: bool
    """Whether the search was complete, so that the error is the smallest there is."""

    @property
    def gap(self) -> float:
        """How far the error can be above the smallest there is."""
        return 0.0 if self.exact else max(self.error - self.bound, 0.0)


def allocate(costs: Sequence[Costs], errors: Sequence[Vector], limit: int, *, quick: bool = False) -> Allocation | None:
    """The choice of least total error whose total cost is at most `limit`; None if there is none.

    Args:
        costs: for each group, the cost of each option.
        errors: the same shapes; not negative.
        limit: the largest total cost.
        quick: give up exactness early.

    Example:
        >>> a = allocate([np.array([1, 4]), np.array([1, 4])], [np.array([.5, 0]), np.array([.9, 0])], 5)
        >>> a.chosen.tolist(), a.error
        ([0, 1], 0.5)
    """
    if not costs:
        return Allocation(np.zeros(0, np.int64), 0, 0.0, 0.0, True)
    if sum(int(c.min()) for c in costs) > limit:
        return None
    price, first = _lagrangian(costs, errors, limit)
    relaxed = [e + price * c for c, e in zip(costs, errors, strict=True)]
    bound = max(float(sum(r.min() for r in relaxed)) - price * limit, 0.0)
    best = _fill(costs, errors, first, limit)
    reduced = [r - r.min() for r in relaxed]
    exact, left = False, WORK // 4 if quick else WORK
    for width in WIDTHS:
        error = _total(errors, best)
        exact = error - bound <= 1e-12 * error
        if exact:
            break
        better, exact, work = _search(costs, errors, reduced, limit, error - bound, width, left)
        left -= work
        if better is not None and _total(errors, better) < error:
            best = better
        if exact or left <= 0:
            break
    error = _total(errors, best)
    if not exact and not quick and error - bound > NEARLY * error:
        better, proven = _branched(costs, errors, reduced, limit, _total(errors, best) - bound)
        if better is not None and _total(errors, better) < _total(errors, best):
            best = better
        bound = max(bound, proven)
        exact = _total(errors, best) - bound <= 1e-9 * bound
    return Allocation(best, int(_total(costs, best)), float(_total(errors, best)), bound, exact)


def _total(values: Sequence[NDArray[np.generic]], chosen: Indices) -> float:
    return sum(v[i].item() for v, i in zip(values, chosen, strict=True))


def undominated(cost: Costs, error: Vector, among: Indices) -> Indices:
    """Those of some options, by rising cost, than which no other costs as little and loses as little."""
    among = among[np.lexsort((error[among], cost[among]))]
    least = np.minimum.accumulate(error[among])
    return among[np.concatenate([[True], error[among][1:] < least[:-1]])]


def lower_hull(costs: Costs, errors: Vector) -> Indices:
    """Indices of the options on the lower left convex hull, by rising cost and falling error."""
    order = np.lexsort((errors, costs))
    hull: list[int] = []
    for i in order:
        if hull and errors[i] >= errors[hull[-1]]:
            continue
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            left = (errors[b] - errors[a]) * float(costs[i] - costs[a])
            right = (errors[i] - errors[a]) * float(costs[b] - costs[a])
            if left < right:
                break
            hull.pop()
        hull.append(int(i))
    return np.array(hull, dtype=np.int64)


def _lagrangian(costs: Sequence[Costs], errors: Sequence[Vector], limit: int) -> tuple[float, Indices]:
    """The price at which the hulls meet the limit, and the hull choice just below it."""
    edges: list[tuple[float, int, int]] = []
    hulls = [lower_hull(c, e) for c, e in zip(costs, errors, strict=True)]
    for g, hull in enumerate(hulls):
        slopes = -np.diff(errors[g][hull]) / np.diff(costs[g][hull])
        edges += [(-float(s), g, step) for step, s in enumerate(slopes)]
    edges.sort()
    chosen = np.array([hull[0] for hull in hulls], dtype=np.int64)
    spent = sum(int(c[i]) for c, i in zip(costs, chosen, strict=True))
    for negative_slope, g, step in edges:
        a, b = hulls[g][step], hulls[g][step + 1]
        if spent + int(costs[g][b] - costs[g][a]) > limit:
            return -negative_slope, chosen
        spent += int(costs[g][b] - costs[g][a])
        chosen[g] = b
    return 0.0, chosen


def _fill(costs: Sequence[Costs], errors: Sequence[Vector], chosen: Indices, limit: int) -> Indices:
    """Spend what is left, each time on the single change that gains most."""
    chosen = chosen.copy()
    left = limit - sum(int(c[i]) for c, i in zip(costs, chosen, strict=True))
    while True:
        best_gain, move = 0.0, (-1, -1)
        for g, (c, e) in enumerate(zip(costs, errors, strict=True)):
            gain = np.where(c - c[chosen[g]] <= left, e[chosen[g]] - e, 0.0)
            i = int(np.argmax(gain))
            if gain[i] > best_gain:
                best_gain, move = float(gain[i]), (g, i)
        if move[0] < 0:
            return chosen
        g, i = move
        left -= int(costs[g][i] - costs[g][chosen[g]])
        chosen[g] = i


def _search(
    costs: Sequence[Costs],
    errors: Sequence[Vector],
    reduced: Sequence[Vector],
    limit: int,
    slack: float,
    width: int,
    most: int,
) -> tuple[Indices | None, bool, int]:
    """Dynamic programming over what the reduced costs leave: the best choice found, whether no state was dropped, and
    how many were looked at. Beyond `most` of them it gives up."""
    complete, work = True, 0
    tolerance = slack * (1 + 1e-9)
    alive = [np.flatnonzero(r <= tolerance) for r in reduced]
    # Groups with most to decide come last: states multiply late.
    order = sorted(range(len(costs)), key=lambda g: len(alive[g]))
    cheapest = [int(costs[g][alive[g]].min()) for g in order]
    rest = np.concatenate([np.cumsum(cheapest[::-1])[::-1], [0]])
    cost, error, excess = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    trail: list[tuple[Indices, Indices]] = []
    for step, g in enumerate(order):
        options = alive[g]
        work += len(cost) * len(options)
        if work > most:
            return None, False, work
        new_cost = (cost[:, None] + costs[g][options]).ravel()
        new_excess = (excess[:, None] + reduced[g][options]).ravel()
        keep = np.flatnonzero((new_excess <= tolerance) & (new_cost + rest[step + 1] <= limit))
        if not len(keep):
            return None, complete, work
        new_error = (error[:, None] + errors[g][options]).ravel()
        keep = undominated(new_cost, new_error, keep)
        if len(keep) > width:
            complete = False
            keep = keep[_thinned(new_cost[keep], new_excess[keep], width)]
        trail.append((keep // len(options), options[keep % len(options)]))
        cost, error, excess = new_cost[keep], new_error[keep], new_excess[keep]
    at = int(np.argmin(error))
    chosen = np.zeros(len(costs), dtype=np.int64)
    for g, (parent, option) in zip(reversed(order), reversed(trail), strict=True):
        chosen[g] = option[at]
        at = int(parent[at])
    return chosen, complete, work


def _branched(
    costs: Sequence[Costs], errors: Sequence[Vector], reduced: Sequence[Vector], limit: int, slack: float
) -> tuple[Indices | None, float]:
    """The choice that branch and cut finds among what the reduced costs leave, and the bound that it proves."""
    alive = [np.flatnonzero(r <= slack * (1 + 1e-9)) for r in reduced]
    count = sum(map(len, alive))
    if count > MOST_OPTIONS:
        return None, 0.0
    import scipy.optimize  # pyright: ignore[reportMissingTypeStubs]
    import scipy.sparse  # pyright: ignore[reportMissingTypeStubs]

    # scipy carries no types.
    solver, sparse = cast("Any", scipy.optimize), cast("Any", scipy.sparse)
    cost = np.concatenate([c[a] for c, a in zip(costs, alive, strict=True)])
    error = np.concatenate([e[a] for e, a in zip(errors, alive, strict=True)])
    group = np.repeat(np.arange(len(alive)), [len(a) for a in alive])
    unit = float(error.mean()) or 1.0
    one_each = sparse.csr_matrix((np.ones(count), (group, np.arange(count))))
    within = sparse.csr_matrix(cost[None].astype(np.float64))
    solution = solver.milp(
        error / unit,
        constraints=[solver.LinearConstraint(one_each, 1, 1), solver.LinearConstraint(within, -np.inf, limit)],
        integrality=np.ones(count),
        bounds=solver.Bounds(0, 1),
        options={"mip_rel_gap": 1e-10, "node_limit": NODES},
    )
    proven = float(solution.mip_dual_bound) * unit if solution.mip_dual_bound is not None else 0.0
    if solution.x is None:
        return None, proven
    chosen = np.array([a[int(np.argmax(solution.x[group == g]))] for g, a in enumerate(alive)], dtype=np.int64)
    # A solver's tolerance is no excuse for a cost over the limit.
    return (chosen if _total(costs, chosen) <= limit else None), proven


def _thinned(cost: Costs, excess: Vector, width: int) -> Indices:
    """The state of least excess in each of `width` equal stretches of cost, so that any remainder can still be
    filled."""
    span = int(cost.max() - cost.min()) + 1
    stretch = (cost - cost.min()) * width // span
    order = np.lexsort((excess, stretch))
    first = np.concatenate([[True], np.diff(stretch[order]) > 0])
    return np.sort(order[first])
