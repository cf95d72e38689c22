"""Narrower heads in an exported graph: the zeros that fill them up to their former width are dropped.

In torch a narrower head keeps its width, so that the code around it need not change (`NarrowLinear`): zeros are put in
after query, key and value, and picked out again before the output. A graph has no such code. From each place where
zeros come in, this follows the channels to where they end: in the product of query and key, or where the output layer
picks its inputs. If all operators on the way are known, and both sides of a product get narrower by the same, the
zeros go and the shapes on the way get the narrower width. The scale of the scores is a constant and stays. What is not
known stays as it is, which is right as well, only slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowrank.backends.onnx.edit import initializer, new_node
from lowrank.core.truncation.attention import picks_of, spread_of

SCALING = ("Mul", "Div")
PASSING = ("Identity", "Cast")


def narrow_heads(model: Any) -> int:
    """Drop the zeros of narrower heads; how many places they came in at. `model` is an `onnx_ir.Model`, changed."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    walks = [walk for node in model.graph if (walk := _start(node)) is not None and walk.follow()]
    while True:
        met = {meeting: walk.width for walk in walks for meeting in walk.meetings}
        sound = [w for w in walks if all(met.get((node, 1 - side)) == w.width for node, side in w.meetings)]
        if len(sound) == len(walks):
            break
        walks = sound
    for walk in walks:
        walk.apply(model.graph)
    if walks:
        RemoveUnusedNodesPass()(model)
    return len(walks)


def _start(node: Any) -> _Walk | None:
    """A gather that puts zeros behind the channels of every head, `width` of which are real."""
    index = _constant(node.inputs[1]) if node.op_type == "Gather" else None
    source = node.inputs[0].producer() if index is not None else None
    if index is None or index.ndim != 1 or source is None or source.op_type != "Pad" or not _last_axis(node):
        return None
    narrow, pads = source.inputs[0], _constant(source.inputs[1])
    count = _size(narrow, -1)
    if pads is None or count is None or pads.tolist() != [0] * (len(pads) - 1) + [1]:
        return None
    zeros = np.flatnonzero(index == count)
    if not len(zeros):
        return None
    width = int(zeros[0])
    heads = count // width if width else 0
    if not heads or heads * width != count or len(index) % heads:
        return None
    full = len(index) // heads
    spread = spread_of(heads, width, full)
    if not np.array_equal(np.where(spread < 0, count, spread), index):
        return None
    return _Walk(node, narrow, width, full)


@dataclass(frozen=True)
class _HeadAxis:
    """Where in a value the channels are: the axis of one head's, or of all heads' in a row (`merged`)."""

    axis: int
    merged: bool


@dataclass(eq=False)
class _Walk:
    """The channels of one narrower layer, from the zeros that are put in to where they end."""

    start: Any
    narrow: Any
    """The value that the zeros are added to."""
    width: int
    full: int
    meetings: list[tuple[Any, int]] = field(default_factory=list[tuple[Any, int]])
    """Products that sum over the channels, and on which side of them these come."""
    _shapes: list[tuple[Any, int, int]] = field(default_factory=list[tuple[Any, int, int]])
    """Nodes whose second input is a shape, an index in it, and what is to stand there."""
    _picks: list[Any] = field(default_factory=list[Any])
    _places: dict[Any, _HeadAxis] = field(default_factory=dict[Any, _HeadAxis])

    def follow(self) -> bool:
        """Whether all that the channels go through is known."""
        value = self.start.outputs[0]
        if value.shape is None:
            return False
        self._places[value] = _HeadAxis(len(value.shape) - 1, True)
        left = [value]
        while left:
            value = left.pop()
            if value.shape is None or value.is_graph_output():
                return False
            for node, side in value.uses():
                after = self._through(node, side, value)
                if after is None:
                    return False
                if isinstance(after, _HeadAxis):
                    self._places[node.outputs[0]] = after
                    left.append(node.outputs[0])
        return True

    def _through(self, node: Any, side: int, value: Any) -> _HeadAxis | bool | None:
        """Where the channels are in a node's output; True if they end in it, None if that is not known."""
        place, kind = self._places[value], node.op_type
        if kind in PASSING:
            return place
        if kind in SCALING and (kind == "Mul" or side == 0):
            other = node.inputs[1 - side]
            return place if other.shape is not None and all(d == 1 for d in other.shape) else None
        if kind == "Transpose":
            if "perm" not in node.attributes:
                return None
            return _HeadAxis(list(node.attributes["perm"].value).index(place.axis), place.merged)
        if kind == "MatMul":
            return self._multiplied(node, side, value, place)
        if side != 0:
            return None
        if kind == "Unsqueeze":
            axes = _constant(node.inputs[1])
            if axes is None:
                return None
            rank = len(value.shape) + len(axes)
            new = {int(a) % rank for a in axes}
            return _HeadAxis([i for i in range(rank) if i not in new][place.axis], place.merged)
        if kind == "Expand":
            return self._resized(node, place, len(value.shape) - place.axis)
        if kind == "Reshape":
            return self._reshaped(node, value, place)
        if kind == "Gather" and place.merged and _last_axis(node):
            index, size = _constant(node.inputs[1]), _size(value, -1)
            if index is not None and size and np.array_equal(index, picks_of(size // self.full, self.width, self.full)):
                self._picks.append(node)
                return True
        return None

    def _multiplied(self, node: Any, side: int, value: Any, place: _HeadAxis) -> _HeadAxis | bool | None:
        last = len(value.shape) - 1
        if place.merged:
            return None
        if place.axis == (last if side == 0 else last - 1):
            self.meetings.append((node, side))
            return True
        # Mixtures of values keep their channels.
        rank = len(node.outputs[0].shape or ())
        return _HeadAxis(rank - 1, False) if rank and side == 1 and place.axis == last else None

    def _reshaped(self, node: Any, value: Any, place: _HeadAxis) -> _HeadAxis | None:
        from_end, after = len(value.shape) - place.axis, node.outputs[0].shape
        if after is None:
            return None
        if from_end == 1 and len(after) > 1:
            size, heads = _size(value, -1), _size(node.outputs[0], -2)
            if place.merged and after[-1] == self.full and isinstance(size, int) and heads == size // self.full:
                return self._resized(node, _HeadAxis(len(after) - 1, False), 1)
            if not place.merged and after[-1] == self.full * (_size(value, -2) or 0):
                return self._resized(node, _HeadAxis(len(after) - 1, True), 1)
        same = len(after) >= from_end and all(
            (isinstance(a, int) and a == b) or (str(a) == str(b) and not isinstance(a, int))
            for a, b in zip(list(after)[-from_end:], list(value.shape)[-from_end:], strict=True)
        )
        return self._resized(node, _HeadAxis(len(after) - from_end, place.merged), from_end) if same else None

    def _resized(self, node: Any, place: _HeadAxis, from_end: int) -> _HeadAxis | None:
        """The place, if the shape that a node is given can say the narrower width there."""
        pieces = _pieces(node.inputs[1])
        if pieces is None or len(pieces) < from_end:
            return None
        index = len(pieces) - from_end
        number = pieces[index]
        if number is None:
            return None
        if number not in (-1, 1):
            if number % self.full:
                return None
            self._shapes.append((node, index, number // self.full * self.width))
        return place

    def apply(self, graph: Any) -> None:
        """Drop the zeros, and give shapes on the way the narrower width."""
        import onnx_ir as ir

        for node, index, number in self._shapes:
            node.replace_input_with(1, _with_piece(graph, node, index, number))
        for node in self._picks:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        for value, place in self._places.items():
            dims = list(value.shape)
            if isinstance(dims[place.axis], int):
                dims[place.axis] = dims[place.axis] // self.full * self.width
                value.shape = ir.Shape(dims)
        ir.convenience.replace_all_uses_with(self.start.outputs[0], self.narrow)


def _constant(value: Any) -> np.ndarray[Any, Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _size(value: Any, axis: int) -> int | None:
    if value.shape is None or len(value.shape) < -axis:
        return None
    return value.shape[axis] if isinstance(value.shape[axis], int) else None


def _last_axis(node: Any) -> bool:
    axis = node.attributes["axis"].value if "axis" in node.attributes else 0
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else 0
    return axis in (-1, rank - 1)


def _pieces(shape: Any) -> list[int | None] | None:
    """The numbers of a shape, None for those that are only known at run time; None if not even their count is known."""
    known = _constant(shape)
    if known is not None:
        return [int(n) for n in known]
    node = shape.producer()
    if node is None or node.op_type != "Concat":
        return None
    if any(_constant(part) is None and _size(part, -1) is None for part in node.inputs):
        return None
    return [number for part in node.inputs for number in _piece(part)]


def _piece(part: Any) -> Iterator[int | None]:
    known = _constant(part)
    if known is not None:
        yield from (int(n) for n in known)
    else:
        yield from [None] * (_size(part, -1) or 1)


def _with_piece(graph: Any, node: Any, index: int, number: int) -> Any:
    """A node's shape input with another number at an index, as a new value in front of the node."""
    shape, name = node.inputs[1], f"{node.outputs[0].name}.narrow"
    known = _constant(shape)
    if known is not None:
        numbers = known.copy()
        numbers[index] = number
        return initializer(graph, f"{name}.shape", numbers.astype(np.int64))
    inputs: list[Any] = []
    for part in shape.producer().inputs:
        size, start = len(list(_piece(part))), sum(len(list(_piece(p))) for p in inputs)
        if start <= index < start + size:
            numbers = _constant(part)
            assert numbers is not None
            numbers = numbers.copy()
            numbers[index - start] = number
            part = initializer(graph, f"{name}.width", numbers.astype(np.int64))
        inputs.append(part)
    new = new_node("Concat", inputs, {"axis": 0}, name=f"{name}.shape", output=f"{name}.shape")
    new.outputs[0].type, new.outputs[0].shape = shape.type, shape.shape
    graph.insert_before(node, new)
    return new.outputs[0]
