"""Reading an ONNX file as an `onnx_ir.Model`, with all checks that an unknown file needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.backends.onnx.constants import graphs_of
from lowrank.backends.onnx.tensor_files import check_tensors, embed_linked, external
from lowrank.errors import UnsupportedModel, first_line

OLDEST = 7
"""Operator sets before this one broadcast in another way."""


def load_model(path: Path) -> tuple[Any, list[Path]]:
    """The model, its external tensors mapped from their files when they are read, and those files.

    Raises:
        UnsupportedModel: if it is damaged, invalid, newer than this machine's onnx, or reads files that it must not.
    """
    import onnx
    import onnx_ir as ir

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise UnsupportedModel(
            f"{path} is no ONNX file, or one that was cut short ({first_line(error)}); copy or export it again"
        ) from None
    _check_opset(path, proto)
    outside = check_tensors(path, proto)
    _check_graph(path, proto, bool(outside))
    embed_linked(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise _invalid(path, error) from None
    for graph in graphs_of(model):
        ir.external_data.set_base_dir(graph, path.parent)
    return model, sorted(outside)


def _check_opset(path: Path, proto: Any) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not proto.graph.node and not proto.graph.initializer:
        raise UnsupportedModel(f"{path} is no ONNX file, or one with an empty graph; copy or export it again")
    for version in versions:
        if not OLDEST <= version <= newest:
            raise UnsupportedModel(
                f"{path} uses the operator set {version}, and this onnx knows {OLDEST} to {newest}; "
                f"export the model with another one, 20 for instance, or install a newer onnx"
            )


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, or a function, and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _check_graph(path: Path, proto: Any, outside: bool) -> None:
    """Whether names, order and operators of the graph are as the standard says."""
    import onnx

    shapeless = [
        value
        for graph in _graphs(proto.graph)
        for value in (*graph.input, *graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    try:
        if outside or shapeless:
            # The checker has rules of its own for files, whose numbers are not looked at anyway, and asks for shapes
            # that runtimes do without.
            light = onnx.ModelProto()
            light.CopyFrom(proto)
            for tensor in list(external(light)):
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
                del tensor.dims[:]
                tensor.dims.append(0)
            for graph in _graphs(light.graph):
                for value in (*graph.input, *graph.output):
                    if value.type.HasField("tensor_type"):
                        value.type.tensor_type.shape.SetInParent()
            onnx.checker.check_model(light)
        elif proto.ByteSize() < 1 << 30:
            onnx.checker.check_model(proto)
        else:
            onnx.checker.check_model(str(path))
    except Exception as error:
        raise _invalid(path, error) from None


def _invalid(path: Path, error: Exception) -> UnsupportedModel:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2])[:240] or type(error).__name__
    return UnsupportedModel(f"{path} holds no valid graph: {reason}; export the model again")
