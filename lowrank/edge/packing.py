"""Codes of four and fewer bits in a graph: packed into bytes, and unpacked by standard operators.

Of four bits two are in a byte, of three and two bits four, with the third bits of eight in another. A table of all
bytes has what is in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.onnx.edit import add, constant, new_node
from lowrank.core.rounding.codes import Codes

FLOAT, INT32 = 1, 6
"""ONNX's numbers for these types."""
HIGH, STEPS = "high", "steps"
"""Ends of the names of what is stored beside the codes of three and two bits."""

Bytes = NDArray[np.uint8]


def pack(codes: Codes) -> dict[str, Bytes]:
    """Codes and steps in bytes, row by row, by the ends of their names."""
    assert codes.steps is not None
    if codes.bits == 4:
        return {"int4": _nibbles(np.concatenate([codes.codes, codes.steps], 1))}
    numbers = ((codes.codes + 2**codes.bits - 1) // 2).astype(np.uint8)
    parts = {f"int{codes.bits}": _together(numbers & 3, 2)}
    if codes.bits == 3:
        parts[HIGH] = _together(numbers >> 2, 1)
    return {**parts, STEPS: _together((codes.steps + 8).astype(np.uint8), 4)}


def _nibbles(values: NDArray[np.int8]) -> Bytes:
    """In four bits each: the first half of them low, the second half high."""
    nibbles = (values + 8).astype(np.uint8)
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    low, high = np.split(nibbles, 2, axis=1)
    return np.bitwise_or(low, np.left_shift(high, 4))


def _together(values: Bytes, bits: int) -> Bytes:
    """Neighbours in one byte, the first of them lowest."""
    each = 8 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % each))).reshape(len(values), -1, each)
    return np.bitwise_or.reduce(padded << np.arange(0, 8, bits, dtype=np.uint8), axis=-1).astype(np.uint8)


def store(graph: Any, name: str, codes: Codes) -> dict[str, Any]:
    """Packed codes as constants of a graph, by the ends of their names."""
    return {end: constant(graph, f"{name}.{end}", packed) for end, packed in pack(codes).items()}


def unpacked(node: Any, packed: Mapping[str, Any], codes: Codes) -> Any:
    """Products of codes and steps, as floating numbers.

    Args:
        node: in front of which they are made.
        packed: what `store` gave, or some rows of it.
        codes: whose they are.
    """
    assert codes.steps is not None
    graph, (cols, blocks) = node.graph, (codes.codes.shape[1], codes.steps.shape[1])
    if codes.bits == 4:
        numbers, steps = _halves(node, packed["int4"], cols, blocks)
    else:
        numbers = _parts(node, packed[f"int{codes.bits}"], 2, 2 * np.arange(4) - 2**codes.bits + 1, "codes")
        numbers = _first(node, numbers, cols, 4)
        if codes.bits == 3:
            high = _first(node, _parts(node, packed[HIGH], 1, 8 * np.arange(2), "bits"), cols, 8)
            numbers = add(node, "Add", [numbers, high], part="whole").outputs[0]
        steps = _parts(node, packed[STEPS], 4, np.arange(16) - 8, "sizes")
    spread = add(node, "Gather", [steps, _places(graph, cols, codes.block)], part="steps", axis=-1)
    return add(node, "Mul", [numbers, spread.outputs[0]], part="numbers").outputs[0]


def _halves(node: Any, packed: Any, cols: int, blocks: int) -> tuple[Any, Any]:
    """Codes and steps of four bits."""
    halves = [_looked_up(node, packed, (np.arange(256) >> shift & 15) - 8, f"nibbles.{shift}") for shift in (0, 4)]
    levels = add(node, "Concat", halves, part="levels", axis=-1)
    sizes = [cols, blocks] if (cols + blocks) % 2 == 0 else [cols, blocks, 1]
    split = constant(node.graph, f"int4.split.{cols}", np.array(sizes, np.int64))
    parts = add(node, "Split", [levels.outputs[0], split], part="part", outputs=len(sizes), axis=-1)
    return parts.outputs[0], parts.outputs[1]


def _parts(node: Any, packed: Any, bits: int, values: NDArray[np.int64], part: str) -> Any:
    """What bytes hold, neighbours in one; `values` says what the numbers of so many bits stand for."""
    every = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    return _flat(node, _looked_up(node, packed, values[every], f"bytes.{bits}"), packed, part)


def _looked_up(node: Any, packed: Any, table: NDArray[np.int64], name: str) -> Any:
    """For each byte its row in a table of all bytes, which every engine looks up alike: arithmetic on bytes is wrong in
    some (`docs/decisions/0030`)."""
    rows = _once(node.graph, "Cast", [constant(node.graph, name, table.astype(np.int8))], to=FLOAT)
    places = add(node, "Cast", [packed], part=f"{name}.places", to=INT32)
    return add(node, "Gather", [rows, places.outputs[0]], part=f"{name}.each", axis=0).outputs[0]


def _flat(node: Any, values: Any, packed: Any, part: str) -> Any:
    """The last two axes of values as one."""
    graph = node.graph
    rest = constant(graph, "bytes.rest", np.array([-1], np.int64))
    if packed.const_value is not None:
        shape = constant(graph, f"bytes.{packed.shape[0]}", np.array([packed.shape[0], -1], np.int64))
        return add(node, "Reshape", [values, shape], part=part).outputs[0]
    sizes = add(node, "Shape", [packed], part=f"{part}.sizes")
    start = constant(graph, "bytes.from.0", np.array([0], np.int64))
    outer = add(node, "Slice", [sizes.outputs[0], start, rest], part=f"{part}.outer")
    shape = add(node, "Concat", [outer.outputs[0], rest], part=f"{part}.shape", axis=0)
    return add(node, "Reshape", [values, shape.outputs[0]], part=part).outputs[0]


def _first(node: Any, values: Any, cols: int, each: int) -> Any:
    """The first numbers of each row, without what fills up its last byte of so many."""
    if cols % each == 0:
        return values
    bounds: Sequence[int] = (0, cols, -1)
    start, stop, axis = (constant(node.graph, f"bytes.from.{n}", np.array([n], np.int64)) for n in bounds)
    base = values.name.rpartition(".")[2]
    return add(node, "Slice", [values, start, stop, axis], part=f"{base}.first").outputs[0]


def _places(graph: Any, cols: int, block: int) -> Any:
    """Which block each number of a row is in: computed, as written out it would be larger than many a factor."""
    start, stop, one, each = (constant(graph, f"int4.{n}", np.array(n, np.int64)) for n in (0, cols, 1, block))
    return _once(graph, "Div", [_once(graph, "Range", [start, stop, one]), each])


def _once(graph: Any, op: str, inputs: Sequence[Any], **settings: Any) -> Any:
    """What a node gives that reads constants alone: there is one of it in a graph, before all that may read it."""
    name = ".".join([op, *(value.name for value in inputs)])
    known = next((node for node in graph if node.outputs[0].name == name), None)
    if known is None:
        known = new_node(op, inputs, settings, name=name, output=name)
        made = [producer for value in inputs if (producer := value.producer()) is not None]
        if made:
            graph.insert_after(made[-1], known)
        else:
            graph.insert_before(graph[0], known)
    return known.outputs[0]
