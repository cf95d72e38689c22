"""New nodes and constants in the places of old ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def constant(graph: Any, name: str, numbers: NDArray[Any], dtype: Any = None) -> Any:
    """The initializer of a graph that has this name and holds these numbers, or a new one under a name that is free."""
    import onnx_ir as ir

    free, number = name, 2
    while free in graph.initializers:
        known = graph.initializers[free].const_value
        stored = None if known is None or dtype is not None else known.numpy()
        if stored is not None and stored.dtype == numbers.dtype and np.array_equal(stored, numbers):
            # A weight with several layers is stored once.
            return graph.initializers[free]
        free, number = f"{name}.{number}", number + 1
    return initializer(graph, free, ir.tensor(numbers, dtype=dtype, name=free))


def add(
    before: Any, op: str, inputs: list[Any], *, part: str, domain: str = "", outputs: int = 1, **settings: Any
) -> Any:
    """A new node in front of another, named after it."""
    import onnx_ir as ir

    base = before.name or before.outputs[0].name
    node = ir.node(op, inputs, settings, domain=domain, num_outputs=outputs, name=f"{base}.{part}")
    for index, value in enumerate(node.outputs):
        value.name = f"{before.outputs[0].name}.{part}" + (f".{index}" if outputs > 1 else "")
    node.metadata_props.update(before.metadata_props)
    before.graph.insert_before(before, node)
    return node


def replace_node(old: Any, value: Any) -> None:
    """Let a new value take an old node's place, and its output's name."""
    import onnx_ir as ir

    output, graph = old.outputs[0], old.graph
    name, value.shape, value.type = output.name, output.shape, output.type
    ir.convenience.replace_all_uses_with([output], [value], replace_graph_outputs=True)
    graph.remove(old, safe=True)
    value.name = name


def finish(old: Any, *new: Any) -> None:
    """Put new nodes before an old one; the last of them takes over its output."""
    for node in new:
        old.graph.insert_before(old, node)
        node.metadata_props.update(old.metadata_props)
    last = new[-1].outputs[0]
    last.metadata_props.update(old.outputs[0].metadata_props)
    replace_node(old, last)


def initializer(graph: Any, name: str, tensor: Any) -> Any:
    """A new initializer of a graph, under a name that is free."""
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value
