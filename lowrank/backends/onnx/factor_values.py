"""The numbers of a replacement as values of a graph: stored once, read by all the nodes that need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.onnx.constants import tensor_of
from lowrank.backends.onnx.edit import constant_node, initializer, new_node
from lowrank.backends.onnx.sites import Site, attribute
from lowrank.core.match import stem
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import Weight
from lowrank.errors import NonFiniteWeight

Which = Literal["left", "right"]
Layout = Callable[[NDArray[np.floating]], NDArray[np.floating]]


@dataclass(eq=False)
class FactorValues:
    """The factors as values of the graph. Stored once, in the layout of the first site that asks; others transpose."""

    model: Any
    weight: Weight
    replacement: Replacement
    first: Site
    names: dict[str, str] = field(default_factory=dict)
    _values: dict[tuple[str, int], tuple[Any, bool]] = field(default_factory=dict)
    _turns: int = 0

    def factor(self, which: Which, turned: bool, node: Any, layout: Layout | None = None) -> Any:
        """The left (rows x rank) or right (rank x cols) factor, `turned` with its last two axes swapped.

        Args:
            which: the factor.
            turned: whether to swap its axes.
            node: the node that will read it.
            layout: how to lay it out for operators that want more axes.
        """
        key = (which, id(self._home(node)))
        if key not in self._values:
            array = getattr(self.replacement.factors, which)
            array = array.swapaxes(-1, -2) if turned else array
            self._values[key] = self._store(which, layout(array) if layout else array, node), turned
        value, as_turned = self._values[key]
        if as_turned == turned:
            return self._cast(value, node)
        # Constant folding in the runtime does this once, and the file holds the numbers once.
        last = len(value.shape)
        swap = [*range(last - 2), last - 1, last - 2]
        turn = new_node("Transpose", [value], {"perm": swap}, name=f"{value.name}.transpose")
        node.graph.insert_before(node, turn)
        turn.outputs[0].name = f"{value.name}.transposed.{self._turns}"
        self._turns += 1
        return self._cast(turn.outputs[0], node)

    def indices(self, which: str, numbers: NDArray[np.int64], node: Any) -> Any:
        """An index tensor, stored once beside the factors."""
        key = (which, id(self._home(node)))
        if key not in self._values:
            self._values[key] = self._keep(f"{stem(self.weight.name)}.{which}", numbers, which, node), False
        return self._values[key][0]

    def _home(self, node: Any) -> Any:
        """The graph that the factors are stored in: where the constant was, or the node's own for a function's."""
        root = self.first.constant.root
        return root.graph if root.is_initializer() else node.graph

    def _store(self, which: Which, array: NDArray[np.floating], node: Any) -> Any:
        root = self.first.constant.root
        like = tensor_of(root)
        numbers = np.ascontiguousarray(array).astype(like.dtype.numpy())
        if not np.isfinite(numbers.astype(np.float32)).all():
            raise NonFiniteWeight(
                f"{self.weight.name}: a factor holds numbers beyond the range of {self.weight.dtype}; leave this "
                "weight out with --exclude"
            )
        return self._keep(f"{stem(self.weight.name)}.{which}.weight", numbers, which, node)

    def _keep(self, name: str, numbers: NDArray[Any], which: str, node: Any) -> Any:
        """A constant of the graph: an initializer where the weight was one."""
        import onnx_ir as ir

        root = self.first.constant.root
        dtype = tensor_of(root).dtype if numbers.dtype.kind == "f" else ir.DataType.INT64
        if root.is_initializer():
            value = initializer(root.graph, name, numbers, dtype)
            if self.model.ir_version < 4 and root.graph is self.model.graph:
                self.model.graph.inputs.append(value)
            self.names[which] = name
            return value
        value = constant_node(node, numbers, name, dtype)
        value.shape = ir.Shape(numbers.shape)
        return value

    def _cast(self, value: Any, node: Any) -> Any:
        """As the node read it: a weight may be stored in a narrower type than it is used in."""
        casts = [n for n in self.first.constant.chain if n.op_type == "Cast"]
        if not casts:
            return value
        cast = new_node("Cast", [value], {"to": attribute(casts[-1], "to", 1)}, name=f"{value.name}.cast")
        node.graph.insert_before(node, cast)
        return cast.outputs[0]
