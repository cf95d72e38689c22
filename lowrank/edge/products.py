"""Products of what a graph computes with codes of eight bits, by how their inputs are rounded.

With scales of every run inputs are rounded to the range that they have then, by operators that ONNX Runtime fuses. With
scales that are fixed beforehand they are rounded to a range that calibration data had: QuantizeLinear and
DequantizeLinear around a plain product, which is what most engines know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from lowrank.backends.onnx.edit import add, constant
from lowrank.core.rounding.ranges import Range

FLOAT = 1
"""ONNX's number for the type."""
SCALE, RANGE, ZERO = ".scale", ".range", ".zero"
"""Ends of the names of the scales of a weight, and of what a value is rounded by where that is fixed."""


class Inputs(Protocol):
    """A way to round what products read."""

    def product(self, node: Any, vectors: Any, codes: Any, sizes: Any, part: str) -> Any:
        """A node that gives `vectors (codes * sizes)`, in front of another.

        Args:
            node: in front of which it is put.
            vectors: the value that is multiplied.
            codes: a value of eight bits, inputs x outputs.
            sizes: the scale of each output.
            part: what the new nodes are called.
        """
        ...


class EachRun:
    """Inputs are rounded to the range that they have in each run: `DynamicQuantizeLinear, MatMulInteger, Cast, Mul`."""

    def __init__(self) -> None:
        self._rounded: dict[str, tuple[Any, Any, Any]] = {}

    def product(self, node: Any, vectors: Any, codes: Any, sizes: Any, part: str) -> Any:
        """See `Inputs`; the runtime makes one operator of it."""
        if vectors.name not in self._rounded:
            rounding = add(_after(vectors, node), "DynamicQuantizeLinear", [vectors], part=f"{part}.rounded", outputs=3)
            self._rounded[vectors.name] = tuple(rounding.outputs)
        inputs, scale, zero = self._rounded[vectors.name]
        nought = constant(node.graph, "int8.zero", np.zeros((), np.int8))
        product = add(node, "MatMulInteger", [inputs, codes, zero, nought], part=part)
        cast = add(node, "Cast", [product.outputs[0]], part=f"{part}.cast", to=FLOAT)
        both = add(node, "Mul", [scale, sizes], part=f"{part}.scale")
        return add(node, "Mul", [cast.outputs[0], both.outputs[0]], part=f"{part}.scaled")


class Fixed:
    """Inputs are rounded to a range that is known beforehand; those without one stay as they are.

    Args:
        ranges: by the names of values.
    """

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges
        self._rounded: dict[str, Any] = {}

    def product(self, node: Any, vectors: Any, codes: Any, sizes: Any, part: str) -> Any:
        """See `Inputs`."""
        if vectors.name not in self._rounded and vectors.name in self._ranges:
            self._rounded[vectors.name] = self._through_codes(vectors, node, part)
        numbers = add(node, "DequantizeLinear", [codes, sizes], part=f"{part}.numbers", axis=1)
        read = self._rounded.get(vectors.name, vectors)
        return add(node, "MatMul", [read, numbers.outputs[0]], part=part)

    def _through_codes(self, vectors: Any, node: Any, part: str) -> Any:
        found, first = self._ranges[vectors.name], _after(vectors, node)
        scale = constant(node.graph, f"{vectors.name}{RANGE}", np.array(found.scale, np.float32))
        number = np.int8 if found.signed else np.uint8
        zero = constant(node.graph, f"{vectors.name}{ZERO}", np.array(found.zero, number))
        codes = add(first, "QuantizeLinear", [vectors, scale, zero], part=f"{part}.codes")
        return add(first, "DequantizeLinear", [codes.outputs[0], scale, zero], part=f"{part}.rounded").outputs[0]


def ranges_in(graph: Any) -> dict[str, Range]:
    """The fixed range of what each weight is multiplied with, by the names of weights; of a graph of ours."""
    found: dict[str, Range] = {}
    for node in graph:
        made = [value.producer() for value in node.inputs] if node.op_type == "MatMul" else []
        if [each.op_type for each in made if each is not None] == ["DequantizeLinear", "DequantizeLinear"]:
            scale, zero = (value.const_value.numpy() for value in made[0].inputs[1:3])
            # A table that a head reads, too, has its scales in two shapes, of which the second name has a number.
            name = made[1].inputs[1].name.rpartition(SCALE)[0]
            found[name] = Range(float(scale), int(zero), zero.dtype == np.int8)
    return found


def _after(value: Any, node: Any) -> Any:
    """The node in front of which something may be put that reads a value and is read by a node and others like it."""
    uses = {node, *(use.node for use in value.uses() if use.node.graph is node.graph)}
    return next(each for each in node.graph if each in uses)
