"""Storing numbers in sixteen bits; they are computed with in thirty-two."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from lowrank.backends.onnx.edit import add, constant, new_node

LEAST = 1024
"""Smaller tensors stay: together they are next to nothing."""


def store_in_half(model: Any, only: Collection[str] | None = None) -> list[str]:
    """Store the large float32 initializers of an `onnx_ir.Model` in float16, with a Cast behind each.

    A table is cast after what is looked up in it, so that it need not be held in 32 bits.

    Args:
        model: changed in place.
        only: names of those to store so; None for all.

    Returns:
        The names of those that hold numbers beyond the range of float16, which stay as they were.
    """
    import onnx_ir as ir

    graph, left = model.graph, list[str]()
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if only is not None and value.name not in only:
            continue
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST or value.is_graph_output():
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max(initial=0.0) > np.finfo(np.float16).max:
            left.append(value.name)
            continue
        uses = [(use.node, use.idx) for use in value.uses()]
        if any(node.graph is not graph for node, _ in uses) or not uses:
            continue
        graph.initializers.pop(value.name)
        half = constant(graph, value.name, numbers.astype(np.float16))
        cast = None
        for node, at in uses:
            if node.op_type == "Gather" and at == 0:
                _lookup(node, half)
                continue
            if cast is None:
                first = next(each for each in graph if each in {n for n, _ in uses})
                cast = add(first, "Cast", [half], part=f"{value.name}.cast", to=ir.DataType.FLOAT)
                cast.outputs[0].name = f"{half.name}.float"
            node.replace_input_with(at, cast.outputs[0])
    return left


def _lookup(node: Any, table: Any) -> None:
    import onnx_ir as ir

    readers = list(node.outputs[0].uses())
    names = {"name": f"{node.name}.cast", "output": f"{node.outputs[0].name}.float"}
    following = new_node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT}, **names)
    following.outputs[0].shape, following.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    node.replace_input_with(0, table)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    node.graph.insert_after(node, following)
    for use in readers:
        use.node.replace_input_with(use.idx, following.outputs[0])
    outputs = node.graph.outputs
    for index, value in enumerate(outputs):
        if value is node.outputs[0]:
            outputs[index] = following.outputs[0]
