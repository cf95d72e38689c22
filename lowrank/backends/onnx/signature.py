"""How a graph is fed: its inputs as it declares them, and what its lookups say of their range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank.backends.inputs import Dim, Input, Signature
from lowrank.backends.onnx.constants import Constant, resolve
from lowrank.backends.ort_session import DTYPES
from lowrank.backends.outputs import CACHES, Output, output_named

PASSING = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Add", "Where", "Mod")
"""Operators that an index may go through on its way to a table: some exporters wrap negative ones first."""


def signature_of(model: Any) -> Signature | str:
    """The signature of a graph, or why it cannot be fed."""
    inputs: list[Input] = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dtype = DTYPES.get(getattr(value.dtype, "name", "").lower())
        if dtype is None:
            return f"its input {value.name} holds {getattr(value.dtype, 'name', 'no tensor').lower()}"
        if value.shape is None:
            return f"its input {value.name} has no known number of axes"
        inputs.append(Input(value.name, dtype, _dims(value, dtype), _range(value)))
    outputs, left_out = outputs_of(model)
    if not outputs:
        return "it has no outputs"
    signature = Signature(tuple(inputs), outputs, max_sequence=_longest(inputs), left_out=left_out)
    return replace(signature, max_sequence=signature.fixed_length or signature.max_sequence)


def outputs_of(model: Any) -> tuple[tuple[Output, ...], tuple[str, ...]]:
    """The outputs of a graph that are compared, and the names of those that hold no tensors; caches are neither."""
    decoded = any(value.name.startswith("decoder_") for value in model.graph.inputs)
    outputs, others = list[Output](), list[str]()
    for value in model.graph.outputs:
        if CACHES.match(value.name):
            continue
        if getattr(value.dtype, "name", "").lower() in DTYPES:
            outputs.append(output_named(value.name, decoded))
        else:
            others.append(value.name)
    return tuple(outputs), tuple(others)


def _dims(value: Any, dtype: str) -> tuple[Dim, ...]:
    """Fixed sizes as they are. An open first axis is the batch, another one of token ids the sequence."""
    dims: list[Dim] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            dims.append(size)
            continue
        name = str(size.value or "")
        if axis == 0:
            dims.append("batch")
        elif "+" in name:
            dims.append(" + ".join("sequence" if _is_sequence(p) else p.strip() for p in name.split("+")))
        elif not name or _is_sequence(name) or not dtype.startswith("float"):
            dims.append("sequence")
        else:
            dims.append(name)
    return tuple(dims)


def _is_sequence(name: str) -> bool:
    name = name.strip().lower()
    return "past" not in name and any(part in name for part in ("seq", "len", "token", "time"))


def _range(value: Any) -> int:
    """How many different integers an input may hold: the rows of the table that it is looked up in."""
    waiting, visited = [value], set[int]()
    while waiting:
        current = waiting.pop()
        for node, at in current.uses():
            if id(node) in visited:
                continue
            visited.add(id(node))
            if node.op_type == "Gather" and at == 1:
                table = resolve(node.inputs[0])
                if isinstance(table, Constant):
                    return table.shape[0]
            elif node.op_type in PASSING:
                waiting += node.outputs
    return 2


def _longest(inputs: list[Input]) -> int:
    """The longest sequence that the smallest table of positions allows, as far as a graph tells: it rarely does."""
    return min((i.high for i in inputs if i.name == "position_ids" and i.high > 2), default=512)
