"""How a graph is fed: its inputs as it declares them, and what its lookups say of their range."""

from __future__ import annotations

from typing import Any

from lowrank.backends.inputs import MAIN_OUTPUTS, Dim, Input, Signature
from lowrank.backends.onnx.constants import Constant, resolve
from lowrank.backends.ort_session import DTYPES

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
    names = [output.name for output in model.graph.outputs]
    if not names:
        return "it has no outputs"
    output = next((name for name in MAIN_OUTPUTS if name in names), names[0])
    return Signature(tuple(inputs), output, max_sequence=_longest(inputs))


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
