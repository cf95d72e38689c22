"""Two factors in a constant's place, for every operator that a site can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowrank.backends.onnx.describe import Use
from lowrank.backends.onnx.edit import constant_node, drop, finish, insert, new_node
from lowrank.backends.onnx.factor_values import FactorValues, Which
from lowrank.backends.onnx.sites import attribute, settings_of
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.truncation.spatial import SpatialFactors
from lowrank.core.weight import Weight


def replace_weight(model: Any, weight: Weight, uses: tuple[Use, ...], replacement: Replacement) -> dict[str, str]:
    """Put a weight's factors in the places of all its sites, in `model` itself.

    Each node is replaced by new ones right where it was, whose last output has the old one's name. Other nodes, names
    and metadata stay. What nothing reads any more is removed.

    Returns:
        The names of the tensors that hold the factors, by `left` and `right`, if they are in the graph itself.
    """
    values = FactorValues(model, weight, replacement, uses[0].site)
    for use in uses:
        EMITTERS[use.site.node.op_type](use, values)
    for use in uses:
        _sweep(use.site.constant)
    return values.names


def _node(old: Any, part: str, op: str, inputs: list[Any], attributes: Mapping[str, Any] | None = None) -> Any:
    if not part:
        return new_node(op, inputs, attributes, name=old.name)
    name, output = old.name or old.outputs[0].name, old.outputs[0].name
    return new_node(op, inputs, attributes, name=f"{name}.{part}", output=f"{output}.{part}")


def _pair(use: Use, values: FactorValues, node: Any) -> tuple[Any, Any]:
    """`A` and `B` of `y = (x A) B`, inputs first."""
    if use.transposed:
        return values.factor("left", False, node), values.factor("right", False, node)
    return values.factor("right", True, node), values.factor("left", True, node)


def _products(use: Use, values: FactorValues, node: Any, at: int) -> tuple[Any, Any]:
    """Two MatMuls in the place of one whose operand `at` is the weight."""
    if at == 1:
        a, b = _pair(use, values, node)
        inner = _node(node, "right", "MatMul", [node.inputs[0], a])
        return inner, _node(node, "", "MatMul", [inner.outputs[0], b])
    # From the left the factors are applied as they are: left (right x).
    turned = use.transposed
    first, second = ("left", "right") if turned else ("right", "left")
    inner = _node(node, "right", "MatMul", [values.factor(first, turned, node), node.inputs[1]])
    return inner, _node(node, "", "MatMul", [values.factor(second, turned, node), inner.outputs[0]])


def _pivoted(use: Use, values: FactorValues, node: Any, vectors: Any, at: int, last: str) -> list[Any]:
    """`[z; left z]` in order, as MatMul, MatMul, Concat and Gather along the axis of the outputs.

    Args:
        use: the site.
        values: the factors.
        node: what is replaced.
        vectors: what the weight is multiplied with.
        at: on which side the weight stands.
        last: what the last node's name ends with.
    """
    factors = values.replacement.factors
    assert isinstance(factors, Pivoted)

    def product(which: Which, part: str, other: Any) -> Any:
        operand = values.factor(which, at == 1, node)
        return _node(node, part, "MatMul", [other, operand] if at == 1 else [operand, other])

    axis = -1 if at == 1 else -2
    first = product("right", "right", vectors)
    second = product("left", "left", first.outputs[0])
    joined = [first.outputs[0], second.outputs[0]]
    if factors.order is None:
        return [first, second, _node(node, last, "Concat", joined, {"axis": axis})]
    joint = _node(node, "joint", "Concat", joined, {"axis": axis})
    order = values.indices("order", factors.order, node)
    return [first, second, joint, _node(node, last, "Gather", [joint.outputs[0], order], {"axis": axis})]


def _matmul(use: Use, values: FactorValues) -> None:
    if isinstance(values.replacement.factors, Pivoted):
        node, at = use.site.node, use.site.at
        finish(node, *_pivoted(use, values, node, node.inputs[1 - at], at, ""))
        return
    finish(use.site.node, *_products(use, values, use.site.node, use.site.at))


def _gemm(use: Use, values: FactorValues) -> None:
    """`alpha x' W + beta C`: the scales and the bias come after the second factor."""
    node = use.site.node
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(values.replacement.factors, Pivoted):
        new = _pivoted(use, values, node, node.inputs[0], 1, "" if bias is None else "ordered")
        if bias is not None:
            new.append(_node(node, "", "Add", [new[-1].outputs[0], bias]))
        finish(node, *new)
        return
    a, b = _pair(use, values, node)
    if attribute(node, "transA", 0):
        inner = _node(node, "right", "Gemm", [node.inputs[0], a, *_zero(values, node, a)], {"transA": 1})
    else:
        inner = _node(node, "right", "MatMul", [node.inputs[0], a])
    if alpha == 1.0 and (bias is None or beta == 1.0):
        outer = _node(node, "" if bias is None else "left", "MatMul", [inner.outputs[0], b])
        new = [inner, outer]
        if bias is not None:
            new.append(_node(node, "", "Add", [outer.outputs[0], bias]))
    else:
        inputs = [inner.outputs[0], b, *([bias] if bias is not None else _zero(values, node, b))]
        new = [inner, _node(node, "", "Gemm", inputs, {"alpha": alpha, "beta": beta})]
    finish(node, *new)


def _zero(values: FactorValues, node: Any, like: Any) -> list[Any]:
    """A bias of zero, which a Gemm must have until operator set 10; nothing in later ones."""
    opset = values.model.opset_imports.get("", 0) or 0
    if opset >= 11:
        return []
    dtype = like.const_value.numpy().dtype if like.const_value is not None else np.float32
    return [constant_node(node, np.zeros(1, dtype))]


def _conv(use: Use, values: FactorValues) -> None:
    """A smaller convolution and one of 1 x 1; or a horizontal one and a vertical one."""
    node, rank = use.site.node, values.replacement.factors.rank
    shape = use.site.constant.shape
    settings = settings_of(node)
    outputs, spatial = shape[0], len(shape) - 2
    groups = int(settings.get("group", 1))
    if isinstance(values.replacement.factors, SpatialFactors):
        inputs, (height, width) = shape[1], shape[2:]
        first = values.factor("right", False, node, lambda a: a.reshape(rank, inputs, 1, width))
        # From (outputs kernel rows) x rank to (outputs, rank, kernel rows, 1).
        tall = (outputs, height, rank)
        second = values.factor("left", False, node, lambda a: a.reshape(tall).swapaxes(1, 2)[..., None])
        across, down = _one_way(settings, 1), _one_way(settings, 0)
        inner = _node(node, "right", "Conv", [node.inputs[0], first], {**across, "kernel_shape": [1, width]})
        outer_settings = {**down, "kernel_shape": [height, 1]}
    else:
        first = values.factor("right", False, node, lambda a: a.reshape(groups * rank, *shape[1:]))
        second = values.factor("left", False, node, lambda a: a.reshape(outputs, rank, *[1] * spatial))
        inner = _node(node, "right", "Conv", [node.inputs[0], first], settings)
        outer_settings = {"group": groups, "kernel_shape": [1] * spatial}
    bias = list(node.inputs[2:3])
    finish(node, inner, _node(node, "", "Conv", [inner.outputs[0], second, *bias], outer_settings))


def _one_way(settings: Mapping[str, Any], axis: int) -> dict[str, Any]:
    """A convolution's settings along one axis, with nothing done along the other."""
    along: dict[str, Any] = {}
    if settings.get("auto_pad", "NOTSET") != "NOTSET":
        along["auto_pad"] = settings["auto_pad"]
    for name in ("strides", "dilations"):
        if name in settings:
            along[name] = [n if i == axis else 1 for i, n in enumerate(settings[name])]
    if "pads" in settings:
        along["pads"] = [n if i % 2 == axis else 0 for i, n in enumerate(settings["pads"])]
    return along


def _gather(use: Use, values: FactorValues) -> None:
    """The rows of a thin table, times a small matrix; for experts, the factors of those that were picked."""
    site = use.site
    node, ids = site.node, site.node.inputs[1]
    if not site.gathers:
        table, small = values.factor("right", True, node), values.factor("left", True, node)
        inner = _node(node, "right", node.op_type, [table, ids], settings_of(node))
        finish(node, inner, _node(node, "", "MatMul", [inner.outputs[0], small]))
        return
    # As they stand the picked matrices are multiplied from the left by (outputs, inputs), else from the right.
    rows_first = site.view.stored == "stack rows cols"
    picked = {}
    for which in ("left", "right"):
        value = values.factor(which, not rows_first, node)
        picked[which] = _node(node, which, node.op_type, [value, ids], settings_of(node))
        insert(node, picked[which])
    for reader in site.gathers:
        _picked_product(reader, node, picked)
    drop(node)


def _picked_product(reader: Any, gather: Any, picked: Mapping[str, Any]) -> None:
    """Two batched products in the place of one."""
    at = next(i for i, v in enumerate(reader.inputs) if _comes_from(v, gather))
    turned = reader.inputs[at].producer() is not gather

    def factor(which: str) -> Any:
        value = picked[which].outputs[0]
        if not turned:
            return value
        move = reader.inputs[at].producer()
        turn = _node(move, which, "Transpose", [value], {"perm": attribute(move, "perm", ())})
        reader.graph.insert_before(reader, turn)
        return turn.outputs[0]

    other = reader.inputs[1 - at]
    # `x A B` on the right of x, `left (right x)` on the left of it.
    first, second = factor("right"), factor("left")
    if at == 1:
        inner = _node(reader, "right", "MatMul", [other, first])
        outer = _node(reader, "", "MatMul", [inner.outputs[0], second])
    else:
        inner = _node(reader, "right", "MatMul", [first, other])
        outer = _node(reader, "", "MatMul", [second, inner.outputs[0]])
    old = reader.inputs[at]
    finish(reader, inner, outer)
    if turned and not old.uses():
        drop(old.producer())


def _comes_from(value: Any, gather: Any) -> bool:
    node = value.producer() if value is not None else None
    while node is not None and node is not gather and node.op_type == "Transpose":
        node = node.inputs[0].producer()
    return node is gather


def _einsum(use: Use, values: FactorValues) -> None:
    """`x, W -> y` becomes `x, A -> z` and `z, B -> y`, with one new letter for the rank."""
    site = use.site
    node, at = site.node, site.at
    terms, _, result = "".join(attribute(node, "equation", "").split()).partition("->")
    operands = terms.split(",")
    ours, other = operands[at], operands[1 - at]
    sizes = dict(site.view.sizes)
    summed, outputs = [[c for c in ours if (c in result) == out] for out in (False, True)]
    # In the view's order, which is that of the constant's own axes.
    rank = next(c for c in "rzyxwvutsqponmlkjihgfedcba" if c not in terms + result)
    size = values.replacement.factors.rank
    first = values.factor("right", False, node, lambda a: a.reshape(size, *(sizes[c] for c in summed)))
    second = values.factor("left", False, node, lambda a: a.reshape(*(sizes[c] for c in outputs), size))
    between = "".join(c for c in other if c not in summed) + rank
    inner = _node(
        node,
        "right",
        "Einsum",
        [node.inputs[1 - at], first],
        {"equation": f"{other},{rank}{''.join(summed)}->{between}"},
    )
    outer = _node(
        node, "", "Einsum", [inner.outputs[0], second], {"equation": f"{between},{''.join(outputs)}{rank}->{result}"}
    )
    finish(node, inner, outer)


def _sweep(constant: Any) -> None:
    """Remove a constant, and the nodes that only led from it, unless something else reads them."""
    for node in reversed(constant.chain):
        if node.graph is not None:
            drop(node)
    root = constant.root
    if root.uses() or root.is_graph_output():
        return
    if root.is_initializer():
        graph = root.graph
        graph.initializers.pop(root.name)
        if root in graph.inputs:
            graph.inputs.remove(root)
    elif root.producer() is not None and root.producer().graph is not None:
        drop(root.producer())


EMITTERS: dict[str, Callable[[Use, FactorValues], None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Gather": _gather,
    "GatherND": _gather,
    "Einsum": _einsum,
}
