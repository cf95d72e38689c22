"""Timings: what a runtime's operators take on one machine, and so what each structure would.

A layer is a few operators, and its time is the sum of theirs. Each is measured by itself at sizes that a
model can have; its times at other sizes are interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np

from lowrank.core.linalg.eigen import Vector
from lowrank.core.weight import Group, Weight
from lowrank.errors import TimingError

Operator = Literal["product", "concat", "activation", "scores", "mixture"]
"""A product with a constant and its bias; `scores` of query and key, `mixture` of values, both by width of a head and
with the turns of channels into heads."""

COMPUTED = {"float32": "float32", "int8": "int8", "int4": "int8", "int3": "int8", "int2": "int8"}
"""What products are computed in, by the type of their weights."""

Point = tuple[int, int, float]
"""Two sizes and microseconds: (inputs, outputs) of a product, (heads, width) inside attention, else (0, channels)."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Microseconds of operators by their sizes.

    Example:
        >>> table = Timings(points={"product": [(8, 4, 1.0), (8, 8, 3.0)]}, tokens=16, threads=1)
        >>> table.at("product", 8, 6)
        2.0
    """

    points: Mapping[str, Sequence[Point]]
    tokens: int
    """Rows of the inputs that were multiplied."""
    threads: int
    dtype: str = "float32"
    step: int = 16
    """The distance between sizes that were measured: ranks that are multiples of it run best."""
    machine: str = ""
    runtime: str = ""
    whole: float | None = None
    """Microseconds of the whole dense model, where that was measured too."""
    others: tuple[Timings, ...] = ()
    """The same operators with weights of other types."""

    def of(self, dtype: str) -> Timings | None:
        """The table for weights of a type, by what products with them are computed in; None if there is none."""
        computed = COMPUTED.get(dtype)
        return next((table for table in (self, *self.others) if table.dtype == computed), None)

    @cached_property
    def _curves(self) -> dict[tuple[str, int, int], tuple[Vector, Vector]]:
        """Times over one size with the other one fixed, by operator, which of the two is fixed, and its value."""
        pairs_of: dict[tuple[str, int, int], list[tuple[int, float]]] = {}
        for operator, points in self.points.items():
            for first, second, time in points:
                pairs_of.setdefault((operator, 0, first), []).append((second, time))
                pairs_of.setdefault((operator, 1, second), []).append((first, time))
        return {
            key: (np.array([x for x, _ in sorted(pairs)], float), np.array([t for _, t in sorted(pairs)]))
            for key, pairs in pairs_of.items()
        }

    def at(self, operator: Operator, first: int, second: int) -> float:
        """The time of an operator of two sizes: on the way between those that were measured, and beyond them as on it.

        Raises:
            TimingError: if none like it was measured.
        """
        found = self._along_one(operator, first, second)
        if found is not None:
            return found
        # Neither size was measured: between two that were, each with the other size on its own way.
        measured = sorted(size for name, side, size in self._curves if (name, side) == (operator, 0))
        below, above = [a for a in measured if a < first], [a for a in measured if a > first]
        if below and above:
            near = below[-1], above[0]
            times = [self._along_one(operator, size, second) for size in near]
            if None not in times:
                return float(np.interp(first, near, cast("list[float]", times)))
        raise TimingError(
            f"the table has no {operator} of {first} x {second} or near it: it was measured for other shapes; "
            "measure this model with `lowrank bench MODEL --table`"
        )

    def _along_one(self, operator: Operator, first: int, second: int) -> float | None:
        """The time where one of the two sizes was measured; None where neither was."""
        options = [self._curves.get((operator, 0, first)), self._curves.get((operator, 1, second))]
        sizes = (second, first)
        # The curve that holds the size, and has the more points.
        known = [(len(c[0]), i) for i, c in enumerate(options) if c is not None and c[0][0] <= sizes[i] <= c[0][-1]]
        if known:
            _, i = max(known)
            curve = options[i]
            assert curve is not None
            return float(np.interp(sizes[i], *curve))
        beyond = [(i, c) for i, c in enumerate(options) if c is not None and len(c[0]) > 1]
        if not beyond:
            return None
        i, (x, y) = beyond[0]
        if sizes[i] < x[0]:
            return float(y[0])
        # Past the last point time grows as it does on the way there.
        return float(y[-1] + (y[-1] - y[0]) / (x[-1] - x[0]) * (sizes[i] - x[-1]))

    def product(self, cols: int, rows: int) -> float:
        """A product with a constant, and its bias."""
        return self.at("product", cols, rows)

    def dense(self, weight: Weight) -> float:
        """The time of all products that apply a weight; a lookup takes next to nothing."""
        count, inputs, outputs = products_of(weight)
        return count * self.product(inputs, outputs) if count else 0.0

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold, for `from_json`."""
        points = {name: [list(p) for p in points] for name, points in self.points.items()}
        facts = {key: value for key, value in asdict(self).items() if key != "others"}
        others = {"others": [table.to_json() for table in self.others]} if self.others else {}
        return {**facts, "points": points, **others}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Timings:
        """What `to_json` gave, here or on another machine.

        Raises:
            TimingError: if it is anything else.
        """
        try:
            points = {
                str(name): [(int(a), int(b), float(t)) for a, b, t in cast("list[Any]", each)]
                for name, each in cast("dict[str, Any]", content["points"]).items()
            }
            whole = content.get("whole")
            table = cls(
                points=points,
                tokens=int(content["tokens"]),
                threads=int(content["threads"]),
                dtype=str(content["dtype"]),
                step=int(content["step"]),
                machine=str(content.get("machine", "")),
                runtime=str(content.get("runtime", "")),
                whole=None if whole is None else float(whole),
                others=tuple(map(cls.from_json, cast("list[Any]", content.get("others", [])))),
            )
            if table.step < 1 or table.tokens < 1:
                raise ValueError("no step, or no tokens")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TimingError(f"the file is not a table of timings ({error!r}); measure again") from None
        times = [t for each in points.values() for _, _, t in each] + ([] if table.whole is None else [table.whole])
        if not times or not all(np.isfinite(t) and t > 0 for t in times):
            raise TimingError("the table holds times that are not positive numbers; measure again")
        return table


def products_of(weight: Weight) -> tuple[int, int, int]:
    """How many products apply a weight, their inputs and outputs; a head that is tied to a table is one turned over."""
    sides = (weight.rows, weight.cols) if weight.is_table else (weight.cols, weight.rows)
    return (weight.products, *sides)


NEAR, FAR = 8, 32
"""How many sizes are timed one by one, and up to how many every second; beyond that it is every fourth."""


def spaced(step: int, most: int) -> list[int]:
    """Sizes to time, up to the largest: near each other where few steps make a large difference.

    Example:
        >>> spaced(16, 400)[-9:]
        [128, 160, 192, 224, 256, 288, 320, 352, 384]
    """
    counts = [*range(1, NEAR), *range(NEAR, FAR, 2), *range(FAR, max(most // step, FAR) + 1, 4)]
    return [step * count for count in counts if step * count <= most]


def sizes_for(groups: Sequence[tuple[Group, Sequence[Weight]]], step: int) -> dict[Operator, Sequence[tuple[int, int]]]:
    """Sizes in steps that some structure of some group could have; between them times are interpolated.

    Args:
        groups: what can be decided on, with their weights.
        step: between sizes.
    """
    sizes: dict[Operator, set[tuple[int, int]]] = {name: set() for name in get_args(Operator)}
    products = sizes["product"]
    for group, weights in groups:
        for weight in weights:
            if weight.stack > 1 or not all(layer.kind in ("linear", "lookup") for layer in weight.layers):
                continue
            ranks = spaced(step, weight.full_rank)
            count, inputs, outputs = products_of(weight)
            if count:
                products |= {(inputs, outputs)} | {(inputs, r) for r in ranks} | {(r, outputs) for r in ranks}
            if weight.is_table:
                products |= {(rank, weight.rows) for rank in ranks}
            else:
                # The second factor of a pivoted pair gives what the first does not.
                products |= {(rank, step) for rank in ranks}
                sizes["concat"].add((0, weight.rows))
        if group.coupling is None:
            continue
        first, last = weights[0], weights[-1]
        if group.coupling.kind == "hidden":
            hidden = sorted({*spaced(step, last.cols), last.cols})
            products |= {(first.cols, n) for n in hidden} | {(n, last.rows) for n in hidden}
            sizes["activation"] |= {(0, n) for n in (step, last.cols // 2, last.cols)}
        elif group.coupling.kind != "same_input":
            of_values = group.coupling.kind == "value_output"
            width = first.rows // (group.coupling.kv_heads if of_values else group.coupling.heads)
            sizes["mixture" if of_values else "scores"] |= {
                (group.coupling.heads, w) for w in (1, width // 4, width // 2, width) if w
            }
    return {name: sorted(points) for name, points in sizes.items() if points}
