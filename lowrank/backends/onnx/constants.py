"""Constants of a graph, seen through the operators that only move or cast them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import UnsupportedModel, first_line

MOVES = ("Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")
QUANTISED = ("DequantizeLinear", "DequantizeBFP")


@dataclass(frozen=True, eq=False)
class Constant:
    """A stored tensor and the operators between it and where it is read."""

    root: Any
    """The `onnx_ir.Value` that holds it: an initializer, or the output of a Constant node."""
    chain: tuple[Any, ...] = ()
    """The nodes between the stored tensor and the node that reads it, in order."""

    @property
    def tensor(self) -> Any:
        """The stored tensor."""
        return tensor_of(self.root)

    def array(self) -> NDArray[Any]:
        """The numbers as they are read. A tensor in a file is mapped, not copied."""
        value = self.tensor.numpy()
        for node in self.chain:
            value = _moved(value, node)
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as it is read."""
        value = np.broadcast_to(np.int8(0), tuple(self.tensor.shape.numpy()))
        for node in self.chain:
            value = _moved(value, node)
        return tuple(value.shape)

    def stored(self, read: NDArray[Any]) -> NDArray[Any]:
        """The stored numbers that would be read as these: the inverse of `array`."""
        shape = tuple(self.tensor.shape.numpy())
        if self.is_transposed is not None:
            return read.T if self.is_transposed else read
        # The operators only move numbers about: moving their places along tells where each came from.
        places = np.arange(read.size).reshape(shape)
        for node in self.chain:
            places = _moved(places, node)
        numbers = np.empty(read.size, read.dtype)
        numbers[places.reshape(-1)] = read.reshape(-1)
        return numbers.reshape(shape)

    @property
    def is_transposed(self) -> bool | None:
        """Whether a matrix is read transposed; None if anything but transposes happens to its axes."""
        odd = False
        for node in self.chain:
            if node.op_type == "Transpose" and len(self.tensor.shape) == 2:
                odd ^= _permutation(node, 2) == [1, 0]
            elif node.op_type not in ("Identity", "Cast"):
                return None
        return odd


def graphs_of(model: Any) -> Iterator[Any]:
    """Every graph that may hold initializers: the main one, and those in its nodes and in local functions."""
    yield model.graph
    for holder in (model.graph, *model.functions.values()):
        yield from holder.subgraphs()


def nodes_of(model: Any) -> Iterator[Any]:
    """Every node of the graph, its subgraphs and the local functions."""
    for graph in (model.graph, *model.functions.values()):
        yield from graph.all_nodes()


def constants_of(model: Any) -> list[Any]:
    """The value of every stored tensor, once: initializers of all graphs and outputs of Constant nodes."""
    values: dict[int, Any] = {}
    for graph in graphs_of(model):
        values |= {id(v): v for v in graph.initializers.values() if v.const_value is not None}
    for node in nodes_of(model):
        if node.op_type == "Constant" and tensor_of(node.outputs[0]) is not None:
            values[id(node.outputs[0])] = node.outputs[0]
    return list(values.values())


def tensor_of(value: Any) -> Any:
    """The stored tensor of a value; None if the value is computed, or an input."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        attribute = node.attributes.get("value")
        return attribute.value if attribute is not None else None
    return None


def resolve(value: Any) -> Constant | str | None:
    """The constant behind a value.

    Returns:
        The constant; a reason, if it is computed from constants in a way that is not seen through; None if it is
        computed from the model's inputs.
    """
    chain: list[Any] = []
    while value is not None:
        if tensor_of(value) is not None:
            return Constant(value, tuple(reversed(chain)))
        node = value.producer()
        if node is None:
            return None
        if node.op_type in QUANTISED:
            stored = node.inputs[0]
            return "quantised: DequantizeLinear makes it" if tensor_of(stored) is not None else None
        if node.domain not in ("", "ai.onnx") or node.op_type not in MOVES:
            return _computed(node)
        if len(node.inputs) > 1 and tensor_of(node.inputs[1]) is None:
            return None
        chain.append(node)
        value = node.inputs[0]
    return None


def _computed(node: Any) -> str | None:
    """A reason if a node computes something from constants alone."""
    return f"computed by {node.op_type}: fold the graph's constants first" if _depends_on_nothing(node) else None


KNOWN = "lowrank.depends_on_nothing"


def _depends_on_nothing(node: Any) -> bool:
    """Whether all that a node reads, near and far, is stored. Remembered in each node: graphs are deep."""
    waiting = [node]
    while waiting:
        current = waiting[-1]
        if KNOWN in current.meta:
            waiting.pop()
            continue
        values = [v for v in current.inputs if v is not None and tensor_of(v) is None]
        makers = [v.producer() for v in values]
        if not current.inputs or any(maker is None for maker in makers):
            # An input of the graph, of a loop's body or of a function; or something drawn at random.
            current.meta[KNOWN] = False
        elif any(maker.meta.get(KNOWN) is False for maker in makers):
            current.meta[KNOWN] = False
        else:
            unknown = [maker for maker in makers if KNOWN not in maker.meta]
            if unknown:
                waiting += unknown
                continue
            current.meta[KNOWN] = True
        waiting.pop()
    return bool(node.meta[KNOWN])


def _permutation(node: Any, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.value) if attribute is not None else list(range(rank))[::-1]


def _moved(value: NDArray[Any], node: Any) -> NDArray[Any]:
    """An array after an operator that only moves its numbers.

    Raises:
        UnsupportedModel: if the operator cannot be applied to it.
    """
    try:
        return _applied(value, node)
    except (TypeError, ValueError, IndexError, AttributeError, MemoryError) as error:
        raise UnsupportedModel(
            f"the graph is not valid: {node.op_type} {node.name} cannot take a tensor of the sizes "
            f"{list(value.shape)} ({first_line(error)}); export the model again"
        ) from None


def _applied(value: NDArray[Any], node: Any) -> NDArray[Any]:
    if node.op_type == "Transpose":
        return value.transpose(_permutation(node, value.ndim))
    if node.op_type == "Reshape":
        target = [int(n) for n in tensor_of(node.inputs[1]).numpy()]
        copied = [value.shape[i] if n == 0 else n for i, n in enumerate(target)]
        return value.reshape(copied)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        # Until operator set 12 the axes are an attribute, later an input.
        given = node.attributes.get("axes")
        axes = given.value if given is not None else tensor_of(node.inputs[1]).numpy() if len(node.inputs) > 1 else None
        chosen = None if axes is None else tuple(int(a) for a in axes)
        return np.squeeze(value, chosen) if node.op_type == "Squeeze" else np.expand_dims(value, chosen or ())
    return value
