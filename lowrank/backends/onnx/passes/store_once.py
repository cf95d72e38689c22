"""What is stored once is written once.

A layer that is applied several times has its weight several times in an exported graph, since exporters fold the
transpose in front of each product into a copy. So do fusions, and so does rounding. Wherever copies come from, they
are joined here: tensors with the same numbers, transposes of them, and what is computed of stored tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowrank.backends.onnx.constants import graphs_of
from lowrank.backends.onnx.edit import new_node
from lowrank.backends.onnx.equal import Seen
from lowrank.backends.onnx.inference import DRAWN

LEAST = 256
"""Numbers in a matrix at least for its transpose to be computed instead of stored."""
RANDOM = DRAWN | {"Dropout"}
"""Operators of which two with the same inputs give different numbers."""


def store_once(model: Any) -> None:
    """Join the equal initializers of each graph of an `onnx_ir.Model`, which is changed, and equal nodes that read
    nothing else. Inputs and outputs of the graph stay, and so does what is stored in Constant nodes."""
    for graph in graphs_of(model):
        _join_tensors(graph)
    _join_nodes(model.graph)


def _join_tensors(graph: Any) -> None:
    values = [v for v in graph.initializers.values() if _is_private(v) and not v.const_value.dtype.is_string()]
    seen = Seen[Any]()
    # Tables first: rows of a transpose are not looked up as they are stored.
    for value in sorted(values, key=lambda v: not _is_table(v)):
        first, turned = seen.first(value, value.const_value.numpy())
        if first is value:
            continue
        if not turned:
            value.replace_all_uses_with(first)
        elif value.const_value.size < LEAST or _is_table(value) or not _turn(graph, first, value):
            continue
        graph.initializers.pop(value.name)


def _turn(graph: Any, stored: Any, value: Any) -> bool:
    """Let what reads a matrix read the transpose of another one, unless only subgraphs read it."""
    readers = {node for node in value.consumers() if node.graph is graph}
    if len(readers) < len(set(value.consumers())) or not readers:
        return False
    turn = new_node("Transpose", [stored], {"perm": [1, 0]}, name=f"{value.name}.turned", output=f"{value.name}.turned")
    turn.outputs[0].type, turn.outputs[0].shape = value.type, value.shape
    graph.insert_before(next(node for node in graph if node in readers), turn)
    value.replace_all_uses_with(turn.outputs[0])
    return True


def _join_nodes(graph: Any) -> None:
    stored = {id(value) for value in graph.initializers.values() if _is_private(value)}
    known: dict[tuple[Any, ...], Any] = {}
    for node in list(graph):
        if not node.inputs or any(id(value) not in stored for value in node.inputs) or node.op_type in RANDOM:
            continue
        settings = _plain_settings(node.attributes.values())
        if settings is None or any(value.is_graph_output() for value in node.outputs):
            continue
        stored |= {id(value) for value in node.outputs}
        key = (node.op_identifier(), tuple(map(id, node.inputs)), len(node.outputs), settings)
        first = known.setdefault(key, node)
        if first is node:
            continue
        for value, same in zip(node.outputs, first.outputs, strict=True):
            value.replace_all_uses_with(same)
        graph.remove(node, safe=True)


def _plain_settings(attributes: Iterable[Any]) -> tuple[Any, ...] | None:
    """Names and values of attributes; None if there are graphs or tensors among them."""
    settings: list[tuple[str, Any]] = []
    for attribute in attributes:
        if attribute.type.name not in ("INT", "FLOAT", "STRING", "INTS", "FLOATS", "STRINGS") or attribute.is_ref():
            return None
        value = attribute.value
        settings.append((attribute.name, tuple(value) if attribute.type.name.endswith("S") else value))
    return tuple(sorted(settings))


def _is_private(value: Any) -> bool:
    return value.const_value is not None and not value.is_graph_input() and not value.is_graph_output()


def _is_table(value: Any) -> bool:
    return any(use.idx == 0 and use.node.op_type.startswith("Gather") for use in value.uses())
