"""Permutations absorbed: pivoted weights whose neighbours agree on an order of the channels between them.

Pivoted factors give their outputs in another order, and putting them back is slow: a runtime copies number by number.
But neurons may stand in any order, and so may the channels of a head, between query and key or value and output. So the
order is chosen for both neighbours: pivots of the one come first, those of the other last, and no gather is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Numbers
from lowrank.core.cost import item_bytes
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import LARGEST, LARGEST_COARSE, Pivoted, Side, chosen_rows, combinations
from lowrank.core.weight import Coupling, Weight

Order = NDArray[np.int64]


def agree_channel_order(
    replacements: Mapping[str, Replacement], weights: Iterable[Weight], couplings: Iterable[Coupling], numbers: Numbers
) -> dict[str, Replacement]:
    """The same function with fewer gathers.

    A coupling counts if all its weights are factored by themselves. Pivots can only be the first or the last channels
    of every head if their number is a multiple of that of the heads, and if those that are free to be chosen carry the
    others soundly in the dtype that they are stored in (see `combinations`); otherwise the gather stays.

    Args:
        replacements: what replaces each weight.
        weights: of the model.
        couplings: of the model.
        numbers: where the biases are.
    """
    ordered = dict(replacements)
    coarse = {weight.name for weight in weights if item_bytes(weight.dtype) <= 2}
    for coupling in couplings:
        if coupling.kind in ("hidden", "query_key", "value_output") and all(
            _factored(ordered.get(n)) for n in coupling.weights
        ):
            _absorb(coupling, ordered, numbers, LARGEST if coarse.isdisjoint(coupling.weights) else LARGEST_COARSE)
    return ordered


def _absorb(coupling: Coupling, replacements: dict[str, Replacement], numbers: Numbers, largest: float) -> None:
    *firsts, last = coupling.weights
    groups, between = coupling.kv_heads, coupling.kind == "query_key"
    # Of the heads that share keys and values every one would need the same pivots.
    alike = coupling.heads == groups
    pivoted = [name for name in firsts if _is_pivoted(replacements[name])] if alike or not between else []
    leading = pivoted[0] if pivoted else None
    trailing = last if _is_pivoted(replacements[last]) and (alike or between) else None
    ends = _ends(
        None if leading is None else _basis(replacements[leading], "output"),
        None if trailing is None else _basis(replacements[trailing], "output" if between else "input"),
        groups,
        largest,
    )
    if ends is None:
        return
    for_queries = _for_heads(ends.order, coupling.heads // groups, groups)
    for name in firsts:
        order, end = for_queries if between else ends.order, ends.first if name == leading else None
        replacements[name] = _outputs_in(order, replacements[name], numbers, name, end, groups, last=False)
    then = replacements[last]
    if between:
        replacements[last] = _outputs_in(ends.order, then, numbers, last, ends.last, groups, last=True)
    else:
        replacements[last] = _inputs_in(for_queries, then, ends.last, groups)


@dataclass(frozen=True, eq=False)
class _Ends:
    """An order of channels, and how many of each head are pivots of the first and of the last weight."""

    order: Order
    """The new channel i is the former one `order[i]`; channels stay in their heads."""
    first: int | None
    last: int | None


def _ends(first: Matrix | None, last: Matrix | None, heads: int, largest: float) -> _Ends | None:
    """An order with the pivots of one basis first and those of another last; None if neither can be.

    Args:
        first: channels x rank, None for a weight that has no pivots.
        last: the same.
        heads: how many blocks of neighbouring channels there are.
        largest: see `combinations`.
    """
    first, last = (b if b is not None and b.shape[1] % heads == 0 else None for b in (first, last))
    some = first if first is not None else last
    if some is None:
        return None
    count = len(some)
    taken = np.zeros(count, bool)
    if first is not None:
        rows = chosen_rows(first, heads)
        if _sound(first, rows, largest):
            taken[rows] = True
        else:
            first = None
    ending = np.zeros(count, bool)
    if last is not None:
        # Those that the first weight has left, all of them if they are too few.
        free = count // heads - (first.shape[1] // heads if first is not None else 0)
        enough = last.shape[1] // heads <= free
        rows = chosen_rows(last, heads, None if enough else ~taken, ~taken if enough else None)
        if _sound(last, rows, largest):
            ending[rows] = True
        else:
            last = None
    if first is None and last is None:
        return None
    place = np.where(taken & ~ending, 0, np.where(ending & ~taken, 2, 1)).reshape(heads, -1)
    order = (np.argsort(place, 1, kind="stable") + np.arange(heads)[:, None] * (count // heads)).ravel()
    # Once more as it will be solved: near a singular block rounding decides.
    return _Ends(
        order.astype(np.int64),
        _each(first, order, heads, largest, last=False),
        _each(last, order, heads, largest, last=True),
    )


def _sound(basis: Matrix, rows: Order, largest: float) -> bool:
    rest = np.setdiff1d(np.arange(len(basis)), rows)
    return combinations(basis, rows, rest, largest) is not None


def _each(basis: Matrix | None, order: Order, heads: int, largest: float, *, last: bool) -> int | None:
    """How many pivots each head has at its end, if they are sound there."""
    if basis is None:
        return None
    each = basis.shape[1] // heads
    sound = combinations(basis[order], *_split(each, heads, len(basis), last), largest) is not None
    return each if sound else None


def _for_heads(order: Order, each: int, groups: int) -> Order:
    """The order of every head's channels, for heads that share those of a group."""
    if each == 1:
        return order
    width = len(order) // groups
    within = order.reshape(groups, width) - np.arange(groups)[:, None] * width
    heads = np.repeat(within, each, 0)
    return (heads + np.arange(len(heads))[:, None] * width).ravel()


def _split(each: int, heads: int, count: int, last: bool) -> tuple[Order, Order]:
    """Which channels are the pivots, and which the others."""
    channels = np.arange(count, dtype=np.int64).reshape(heads, -1)
    width = channels.shape[1]
    parts = (channels[:, width - each :], channels[:, : width - each])
    first, second = parts if last else (channels[:, :each], channels[:, each:])
    return first.ravel(), second.ravel()


def _factored(replacement: Replacement | None) -> bool:
    factors = replacement.factors if replacement is not None else None
    fresh = isinstance(factors, Pivoted) and factors.side == "output" and factors.order is not None
    return fresh or (isinstance(factors, Factors) and factors.left.ndim == 2)


def _is_pivoted(replacement: Replacement) -> bool:
    return isinstance(replacement.factors, Pivoted)


def _basis(replacement: Replacement, side: Side) -> Matrix:
    """Channels x rank: the coordinates of a weight's outputs or inputs."""
    pair = replacement.factors.pair()
    assert pair is not None
    return pair[0] if side == "output" else pair[1].T


def _outputs_in(
    order: Order, replacement: Replacement, numbers: Numbers, name: str, each: int | None, heads: int, *, last: bool
) -> Replacement:
    """Outputs reordered: the new one i is the former one `order[i]`; with `each` pivots at an end of every head, if it
    is given."""
    factors = replacement.factors
    assert isinstance(factors, Factors | Pivoted)
    if each is not None:
        pair = factors.pair()
        assert pair is not None
        left = pair[0][order]
        pivots, others = _split(each, heads, len(left), last)
        combined = combinations(left, pivots, others, np.inf)
        assert combined is not None
        factors = Pivoted(combined, left[pivots] @ pair[1], None, "output", heads, last)
    elif isinstance(factors, Pivoted):
        before = np.arange(len(order)) if factors.order is None else factors.order
        factors = replace(factors, order=before[order])
    else:
        factors = replace(factors, left=factors.left[order])
    bias = numbers.bias(name) if replacement.bias is None else replacement.bias
    bias = None if bias is None else bias[order] if len(bias) else bias
    return replace(replacement, factors=factors, bias=bias, rows=order)


def _inputs_in(order: Order, replacement: Replacement, each: int | None, heads: int) -> Replacement:
    """Inputs reordered in the same way; the pivots are inputs then, the last ones of every head."""
    factors = replacement.factors
    assert isinstance(factors, Factors | Pivoted)
    if each is None:
        return replace(replacement, factors=replace(factors, right=factors.right[:, order]), cols=order)
    pair = factors.pair()
    assert pair is not None
    right = pair[1][:, order]
    pivots, others = _split(each, heads, right.shape[1], last=True)
    combined = combinations(right.T, pivots, others, np.inf)
    assert combined is not None
    factors = Pivoted(pair[0] @ right[:, pivots], combined.T, None, "input", heads, True)
    return replace(replacement, factors=factors, cols=order)
