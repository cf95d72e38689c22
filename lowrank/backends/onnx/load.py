"""An ONNX file as an `onnx_ir.Model`, after everything about it that could go wrong has been looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.backends.onnx.constants import graphs_of
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
    outside = list(_external(proto))
    for tensor in outside:
        _check_external(path, tensor)
    _check_graph(path, proto, bool(outside))
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise _invalid(path, error) from None
    for graph in graphs_of(model):
        ir.external_data.set_base_dir(graph, path.parent)
    return model, sorted({path.parent / _entry(tensor, "location") for tensor in outside})


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


def _external(proto: Any) -> Iterator[Any]:
    """Every tensor of a model proto whose numbers are in another file."""
    import onnx

    for graph in (inner for whole in (proto.graph, *proto.functions) for inner in _graphs(whole)):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        own = [attribute.t for attribute in attributes if attribute.HasField("t")]
        many = [tensor for attribute in attributes for tensor in attribute.tensors]
        for tensor in (*getattr(graph, "initializer", ()), *own, *many):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, or a function, and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _entry(tensor: Any, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")


def _check_external(path: Path, tensor: Any) -> None:
    """Refuse a tensor whose file is not there, is too short, or lies outside the model's folder."""
    location = _entry(tensor, "location")
    where = f"{path}: {tensor.name} is kept in {location!r}"
    file = path.parent / location
    inside = bool(location) and not Path(location).is_absolute() and ".." not in Path(location).parts
    if not inside:
        raise UnsupportedModel(
            f"{where}, outside the model's folder, which is never read; put the file beside {path.name} and save the "
            "model again"
        )
    if not file.is_file():
        raise UnsupportedModel(f"{where}, which is not there; copy it from where {path.name} came from")
    try:
        offset = int(_entry(tensor, "offset") or 0)
        length = int(_entry(tensor, "length") or 0)
    except ValueError:
        raise UnsupportedModel(f"{where} at no valid place; export the model again") from None
    size = file.stat().st_size
    needed = offset + max(length, _bytes(tensor))
    if offset < 0 or length < 0 or needed > size:
        raise UnsupportedModel(
            f"{where}, which has {size:,} bytes and should have {needed:,}; it may be cut short: copy it again"
        )


def _bytes(tensor: Any) -> int:
    from math import prod

    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        width = tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        return 0
    # Four-bit types are packed two to a byte; their length says enough.
    return prod(tensor.dims) * width if "4" not in str(tensor_dtype_to_np_dtype(tensor.data_type)) else 0


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
            for tensor in list(_external(light)):
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
