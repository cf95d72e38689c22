"""The exported graph in the form that readers and tools expect: plain MatMuls, weights named after their modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.backends.onnx.describe import SCOPES, scope_of
from lowrank.backends.onnx.edit import add, drop, finish, initializer, new_node, rename, replace_node
from lowrank.backends.onnx.sites import settings_of

if TYPE_CHECKING:
    from torch import nn


def name_initializers(model: Any, module: nn.Module, prefix: str) -> None:
    """Rename each weight to the parameter that it holds.

    The exporter folds transposes into weights, which then lose their names (`val_83`); the path of the module that a
    node came from is kept in the node's metadata. What that module holds in the same numbers gives the name.

    Args:
        model: an `onnx_ir.Model`, changed in place.
        module: what was exported.
        prefix: dropped from every name.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.name.startswith(prefix):
            rename(graph, value, value.name.removeprefix(prefix))
    for node in graph:
        for value in node.inputs:
            if value is None or not str(value.name).startswith("val_") or value.name not in graph.initializers:
                continue
            path = scope_of(node)
            name = _parameter_of(module, path, value.const_value) if path and len(value.shape) > 1 else ""
            if name:
                rename(graph, value, name.removeprefix(prefix))


def _parameter_of(module: nn.Module, path: str, tensor: Any) -> str:
    """The full name of a parameter under `path` with a tensor's numbers, as they are or transposed."""
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return ""
    numbers = None
    for key, parameter in owner.named_parameters():
        if sorted(parameter.shape) != sorted(tensor.shape.numpy()):
            continue
        numbers = tensor.numpy() if numbers is None else numbers
        ours = parameter.detach().numpy()
        if np.array_equal(ours, numbers) or np.array_equal(ours.swapaxes(-1, -2), numbers):
            return f"{path}.{key}"
    return ""


def gemm_to_matmul(model: Any) -> None:
    """Turn each `Gemm(x, W)` without a bias into `MatMul(x, W')`.

    The exporter writes a bias-free linear layer as Gemm when its input has two axes and as MatMul when it has three;
    a chain of two factors is to look the same in both. `model` is an `onnx_ir.Model`, changed in place.
    """
    graph, transposed = model.graph, dict[str, Any]()
    for node in list(graph):
        if node.op_type != "Gemm" or len(node.inputs) != 2:
            continue
        value = node.inputs[1]
        settings = settings_of(node)
        plain = settings.get("alpha", 1.0) == 1.0 and not settings.get("transA", 0)
        if not plain or value is None or value.name not in graph.initializers:
            continue
        if settings.get("transB", 0):
            # A tied weight is transposed once, for all that read it.
            value = transposed.get(value.name) or transposed.setdefault(value.name, _transpose(graph, value))
        finish(node, new_node("MatMul", [node.inputs[0], value], name=node.name, output=node.outputs[0].name))


def keep_apart(model: Any) -> None:
    """Write the additions in front of norms as sums, which are the same numbers.

    ONNX Runtime makes one operator of an `Add` and a norm behind it, when it loads a graph. On CPUs that takes several
    times as long as the two alone (250 against 50 us in all-MiniLM-L6-v2); a `Sum` it leaves alone. `model` is an
    `onnx_ir.Model`, changed in place.
    """
    for node in list(model.graph):
        if node.op_type != "LayerNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        old = node.inputs[0].producer()
        if old is not None and old.op_type == "Add" and old.graph is model.graph:
            replace_node(old, add(old, "Sum", list(old.inputs), part="sum").outputs[0])


def drop_traces(model: Any) -> None:
    """Drop what the exporter says of every node, but for the module that it came from, by which layers are named: in a
    small model that is more than the numbers. `model` is an `onnx_ir.Model`, changed in place.
    """
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
        for value in node.outputs:
            value.metadata_props.clear()


def drop_joints(model: Any) -> None:
    """Let what reads a `Split` of a `Concat` of the same sizes read the parts: a fused projection that is several
    layers now. `model` is an `onnx_ir.Model`, changed in place.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        joint = node.inputs[0].producer() if node.op_type == "Split" else None
        if joint is None or joint.op_type != "Concat" or len(joint.inputs) != len(node.outputs):
            continue
        rank, axis = len(joint.outputs[0].shape or ()), joint.attributes["axis"].value
        same = rank and (node.attributes["axis"].value if "axis" in node.attributes else 0) % rank == axis % rank
        pairs = list(zip(joint.inputs, node.outputs, strict=True))
        sizes = [(part.shape and part.shape[axis], cut.shape and cut.shape[axis]) for part, cut in pairs]
        if not same or any(not isinstance(a, int) or a != b for a, b in sizes):
            continue
        if any(cut.is_graph_output() for _, cut in pairs):
            continue
        for part, cut in pairs:
            ir.convenience.replace_all_uses_with(cut, part)
        graph.remove(node, safe=True)
        drop(joint)


def _transpose(graph: Any, value: Any) -> Any:
    """A new initializer with the transposed numbers; the old one stays if other nodes read it."""
    alone = len(value.uses()) == len([use for use in value.uses() if use.node.op_type == "Gemm"])
    name = value.name
    if alone:
        graph.initializers.pop(name)
    numbers = np.ascontiguousarray(value.const_value.numpy().T)
    return initializer(graph, name if alone else f"{name}.transposed", numbers)
