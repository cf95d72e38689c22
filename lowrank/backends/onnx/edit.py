"""Graph surgery: new nodes and constants, put in the places of old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def new_node(
    op: str,
    inputs: Sequence[Any],
    settings: Mapping[str, Any] | None = None,
    *,
    name: str | None,
    output: str | None = None,
) -> Any:
    """A new node of one output that is in no graph yet; a graph gives it the names that are None."""
    import onnx_ir as ir

    new = ir.node(op, inputs, settings or {}, name=name)
    new.outputs[0].name = output
    return new


def add(
    before: Any, op: str, inputs: list[Any], *, part: str, domain: str = "", outputs: int = 1, **settings: Any
) -> Any:
    """A new node in front of another, named after it."""
    import onnx_ir as ir

    base = before.name or before.outputs[0].name
    new = ir.node(op, inputs, settings, domain=domain, num_outputs=outputs, name=f"{base}.{part}")
    for index, value in enumerate(new.outputs):
        value.name = f"{before.outputs[0].name}.{part}" + (f".{index}" if outputs > 1 else "")
    insert(before, new)
    return new


def insert(before: Any, *new: Any) -> None:
    """Put new nodes in front of another; they keep what is said of where that one came from."""
    for each in new:
        each.metadata_props.update(before.metadata_props)
        before.graph.insert_before(before, each)


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
    insert(old, *new)
    last = new[-1].outputs[0]
    last.metadata_props.update(old.outputs[0].metadata_props)
    replace_node(old, last)


def drop(old: Any) -> None:
    """Remove a node that nothing reads."""
    if not any(value.uses() or value.is_graph_output() for value in old.outputs):
        old.graph.remove(old, safe=True)


def initializer(graph: Any, name: str, numbers: NDArray[Any], dtype: Any = None) -> Any:
    """A new initializer of a graph, under a name that is free, in the numbers' own type or another of that size."""
    import onnx_ir as ir

    tensor: Any = ir.tensor(numbers, dtype=dtype, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def constant(graph: Any, name: str, numbers: NDArray[Any], dtype: Any = None) -> Any:
    """The initializer of a graph that has this name and holds these numbers, or a new one under a name that is free."""
    free, number = name, 2
    while free in graph.initializers:
        known = graph.initializers[free].const_value
        stored = None if known is None or dtype is not None else known.numpy()
        if stored is not None and stored.dtype == numbers.dtype and np.array_equal(stored, numbers):
            # A weight with several layers is stored once.
            return graph.initializers[free]
        free, number = f"{name}.{number}", number + 1
    return initializer(graph, free, numbers, dtype)


def constant_node(before: Any, numbers: NDArray[Any], name: str | None = None, dtype: Any = None) -> Any:
    """The output of a new Constant in front of a node, for graphs that hold numbers so."""
    import onnx_ir as ir

    new = new_node("Constant", [], {"value": ir.tensor(numbers, dtype=dtype, name=name)}, name=name, output=name)
    before.graph.insert_before(before, new)
    return new.outputs[0]


def with_initializers(model: Any, numbers: Mapping[str, NDArray[Any]]) -> Any:
    """A copy of a model with other numbers in some initializers of its main graph, each in its own type."""
    import onnx_ir as ir

    copy = model.clone()
    for name, array in numbers.items():
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(array, dtype=value.const_value.dtype, name=name)
    return copy


def rename(graph: Any, value: Any, name: str) -> None:
    """Give an initializer another name, unless that is taken."""
    if name not in graph.initializers:
        graph.initializers.pop(value.name)
        value.name = name
        graph.register_initializer(value)
