"""Names for what the exporter calls `val_83`: the weights of an ONNX graph named after the modules they came from."""

from __future__ import annotations

import ast
from typing import Any

SCOPES = "pkg.torch.onnx.name_scopes"


def name_initializers(model: Any, prefix: str) -> None:
    """Rename each weight that one node of one module reads to `<module>.weight`.

    The exporter folds a linear layer's transpose into its weight, which then loses its name; the module's path is kept in
    the node's metadata. `model` is an `onnx_ir.Model`, changed in place.
    """
    graph = model.graph
    for node in graph:
        if node.op_type != "MatMul" or len(node.inputs) != 2:
            continue
        value = node.inputs[1]
        path = _module_path(node, prefix)
        if path and value is not None and value.name in graph.initializers and value.name.startswith("val_"):
            wanted = f"{path}.weight"
            if wanted not in graph.initializers:
                graph.initializers.pop(value.name)
                value.name = wanted
                graph.register_initializer(value)
    for value in list(graph.initializers.values()):
        if value.name.startswith(prefix):
            graph.initializers.pop(value.name)
            value.name = value.name.removeprefix(prefix)
            graph.register_initializer(value)


def _module_path(node: Any, prefix: str) -> str:
    """The innermost module that a node came from, `` if the exporter did not say."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]).removeprefix(prefix) if len(scopes) >= 2 else ""
