"""Where a graph multiplies by constants: one site for each node, whatever operator it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from lowrank.backends.onnx.constants import Constant, nodes_of, resolve, tensor_of
from lowrank.core.weight import LayerKind, View

WEIGHT_INPUT = {"MatMul": (1, 0), "Gemm": (1,), "Conv": (1,), "Gather": (0,), "GatherND": (0,), "Einsum": (1, 0)}
"""Which inputs of an operator may be the weight, the usual one first."""

INTEGER_PRODUCTS = frozenset(
    [
        *("MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv", "QGemm", "MatMulNBits", "QAttention"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "GatherBlockQuantized", "QMoE"),
    ]
)
"""Operators that multiply by quantised weights, of the standard and of ONNX Runtime."""


@dataclass(frozen=True, eq=False)
class Site:
    """One node that applies a constant, and how its matrix is read off the constant."""

    node: Any
    at: int
    """The position of the constant among the inputs of the node."""
    constant: Constant
    kind: LayerKind
    view: View
    """From the constant, as the node reads it, to the matrix of `y = W x`."""
    spatial: View | None = None
    gathers: tuple[Any, ...] = ()
    """Of experts that are picked by index: the products that read what this Gather picks."""

    @property
    def vectors(self) -> Any:
        """The value that the weight is multiplied with, or the indices that pick from it."""
        return self.node.inputs[1 - self.at] if self.node.op_type != "Conv" else self.node.inputs[0]

    def matrix(self) -> NDArray[Any]:
        """The weight as a matrix of numbers."""
        return self.view.matrix(self.constant.array())


def find_sites(model: Any) -> tuple[list[Site], dict[int, str]]:
    """All sites in the order of the graph, and for other constants (by the id of their value) why there is none."""
    sites: list[Site] = []
    reasons: dict[int, str] = {}
    for node in nodes_of(model):
        if node.domain not in ("", "ai.onnx"):
            local = any(f.domain == node.domain and f.name == node.op_type for f in model.functions.values())
            reason = f"{node.domain}.{node.op_type} reads it, which is no matrix product"
            if local:
                reason = f"passed into the function {node.op_type}: inline functions first (onnx.inliner)"
            _explain(node, reason, reasons)
            continue
        for at in WEIGHT_INPUT.get(node.op_type, ()):
            if at >= len(node.inputs):
                continue
            constant = resolve(node.inputs[at])
            if isinstance(constant, Constant) and (constant.tensor.dtype.is_floating_point()):
                site = READERS[node.op_type](node, at, constant)
                if isinstance(site, Site):
                    sites.append(site)
                    break
                reasons.setdefault(id(constant.root), site)
            elif isinstance(constant, str):
                _blame(node.inputs[at], constant, reasons)
        else:
            _explain(node, f"an operand of {node.op_type}", reasons)
    return sites, reasons


def _explain(node: Any, reason: str, reasons: dict[int, str]) -> None:
    for value in node.inputs:
        if tensor_of(value) is not None:
            reasons.setdefault(id(value), reason)


def _blame(value: Any, reason: str, reasons: dict[int, str]) -> None:
    """Say of every constant behind a value why it is not used."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if tensor_of(value) is not None:
            reasons[id(value)] = reason
        elif value is not None and value.producer() is not None:
            waiting += value.producer().inputs


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute; the default if the node does not have it."""
    entry = node.attributes.get(name)
    return default if entry is None else entry.value


def settings_of(node: Any) -> dict[str, Any]:
    """The attributes of a node, by name."""
    return {name: each.value for name, each in node.attributes.items()}


def _matmul(node: Any, at: int, constant: Constant) -> Site | str:
    shape = constant.shape
    if len(shape) == 2:
        return Site(node, at, constant, "linear", View("cols rows" if at == 1 else "rows cols"))
    if len(shape) == 3 and shape[0] > 1:
        stored = "stack cols rows" if at == 1 else "stack rows cols"
        return Site(node, at, constant, "experts", View(stored, "stack rows cols"))
    return f"a product with a constant of {len(shape)} axes"


def _gemm(node: Any, at: int, constant: Constant) -> Site | str:
    return Site(node, at, constant, "linear", View("rows cols" if attribute(node, "transB", 0) else "cols rows"))


def _conv(node: Any, at: int, constant: Constant) -> Site | str:
    shape, groups = constant.shape, int(attribute(node, "group", 1))
    if len(shape) not in (3, 4):
        return f"a convolution over {len(shape) - 2} axes"
    fits = groups == 1 and len(shape) == 4 and min(shape[2:]) > 1
    spatial = View.of_spatial(shape) if fits else None
    return Site(node, at, constant, "conv", View.of_conv(shape, groups), spatial)


def _gather(node: Any, at: int, constant: Constant) -> Site | str:
    shape, ids = constant.shape, node.inputs[1]
    by_row = attribute(node, "axis", 0) == 0
    if node.op_type == "GatherND":
        # Index vectors of one number each pick along the first axis, as a Gather does.
        by_row = attribute(node, "batch_dims", 0) == 0 and ids.shape is not None and ids.shape[-1] == 1
    if not by_row or isinstance(resolve(ids), Constant):
        return "a Gather that is no lookup of rows by index"
    if len(shape) == 2:
        return Site(node, at, constant, "lookup", View("cols rows"))
    if len(shape) == 3 and shape[0] > 1:
        readers = _readers(node.outputs[0])
        if readers:
            side = {_side_of(reader, value) for reader, value in readers}
            if len(side) == 1:
                stored = "stack cols rows" if side == {1} else "stack rows cols"
                picked = tuple(reader for reader, _ in readers)
                return Site(node, at, constant, "experts", View(stored, "stack rows cols"), gathers=picked)
    return f"a Gather of a tensor of {len(shape)} axes"


def _readers(value: Any) -> list[tuple[Any, Any]]:
    """The MatMuls that read what a Gather picked, each with the value it reads; empty if anything else does."""
    readers: list[tuple[Any, Any]] = []
    if value.is_graph_output():
        return []
    for node, _ in value.uses():
        if node.op_type == "MatMul":
            readers.append((node, value))
        elif node.op_type == "Transpose" and _swaps_last_two(node):
            readers += _readers(node.outputs[0]) or [(node, None)]
        else:
            return []
    return [] if any(v is None for _, v in readers) else readers


def _swaps_last_two(node: Any) -> bool:
    perm = list(attribute(node, "perm", ()))
    return len(perm) > 1 and perm == [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]


def _side_of(reader: Any, value: Any) -> int:
    """0 if the picked matrices, as they are stored, are multiplied from the right (`W x`), 1 if from the left."""
    at = 1 if reader.inputs[1] is value else 0
    through = value.producer().op_type == "Transpose"
    return at ^ through


def _einsum(node: Any, at: int, constant: Constant) -> Site | str:
    equation = "".join(attribute(node, "equation", "").split())
    terms, _, result = equation.partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or not result or "." in equation:
        return f"an Einsum of the form {equation!r}"
    ours, other = operands[at], operands[1 - at]
    summed = [c for c in ours if c in other and c not in result]
    outputs = [c for c in ours if c in result and c not in other]
    plain = len(set(ours)) == len(ours) and len(summed) + len(outputs) == len(ours) and summed and outputs
    if not plain:
        return f"an Einsum of the form {equation!r}, which is no product with one matrix"
    sizes = tuple(zip(ours, constant.shape, strict=True))
    return Site(
        node,
        at,
        constant,
        "linear",
        View(" ".join(ours), f"({' '.join(outputs)}) ({' '.join(summed)})", sizes),
    )


READERS: dict[str, Callable[[Any, int, Constant], Site | str]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Gather": _gather,
    "GatherND": _gather,
    "Einsum": _einsum,
}
