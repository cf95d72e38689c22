"""The tensors of a model proto: where their numbers are, and whether there are as many as they say."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from lowrank.artifacts.outside import is_file, is_plain, named_in
from lowrank.errors import UnsupportedModel

FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def tensors(proto: Any) -> Iterator[Any]:
    """Every tensor in a protobuf message: an initializer, a sparse one, an attribute, inside nodes and functions."""
    import onnx
    from google.protobuf.message import Message

    waiting = [proto]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if isinstance(value, Message) else list(value)


def external(proto: Any) -> Iterator[Any]:
    """Every tensor whose numbers are in another file."""
    import onnx

    return (tensor for tensor in tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def check_tensors(path: Path, proto: Any) -> set[Path]:
    """The files beside a model that hold tensors of it, after a look at every tensor.

    Raises:
        UnsupportedModel: if one says that it is larger than it is, or is kept where nothing is read.
    """
    import onnx

    files: set[Path] = set()
    for tensor in tensors(proto):
        # What is not UTF-8 comes as bytes.
        if not isinstance(tensor.name, str) or not is_plain(tensor.name):
            raise UnsupportedModel(f"{path} holds a tensor called {tensor.name[:60]!r}, which is no name; rename it")
        if any(size < 0 for size in tensor.dims):
            raise UnsupportedModel(f"{path}: {tensor.name} has a negative size, {list(tensor.dims)}; export it again")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            files.add(_check_external(path, tensor))
        else:
            _check_held(path, tensor)
    return files


def is_linked(file: Path) -> bool:
    """Whether a file has its numbers elsewhere, or a second name: onnx-ir and ONNX Runtime read no such file."""
    return file.is_symlink() or file.stat().st_nlink > 1


def embed_linked(path: Path, proto: Any) -> None:
    """Move tensors whose files are links into the proto, for a Hugging Face cache keeps all files that way.

    Which names may be followed has been looked at before; see docs/decisions.
    """
    import onnx

    for tensor in list(external(proto)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = path.parent / entries["location"]
        if is_linked(file):
            with file.open("rb") as stream:
                stream.seek(int(entries.get("offset") or 0))
                tensor.raw_data = stream.read(_bytes(prod(tensor.dims), _bits(tensor)))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _check_external(path: Path, tensor: Any) -> Path:
    """Refuse a tensor whose file is not there, is too short, or lies outside the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"{path}: {tensor.name} is kept in {location[:100]!r}"
    if len(entries) != len(tensor.external_data):
        # Readers differ in which of the two they take.
        raise UnsupportedModel(f"{where} and in another place; export the model again")
    file = named_in(path.parent, location) if isinstance(location, str) else None
    if file is None:
        raise UnsupportedModel(
            f"{where}, outside the model's folder, which is never read; put the file beside {path.name} and save the "
            "model again"
        )
    if not is_file(file):
        raise UnsupportedModel(f"{where}, which is not there; copy it from where {path.name} came from")
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or 0)
    except ValueError:
        raise UnsupportedModel(f"{where} at no valid place; export the model again") from None
    size = file.stat().st_size
    claimed = _bytes(prod(tensor.dims), _bits(tensor))
    needed = offset + max(length, claimed)
    if offset < 0 or length < 0 or needed > size:
        raise UnsupportedModel(
            f"{where}, which has {size:,} bytes and should have {needed:,}; it may be cut short: copy it again"
        )
    if length and length != claimed:
        raise UnsupportedModel(
            f"{where} as {length:,} bytes, and {list(tensor.dims)} of its type take {claimed:,}; export it again"
        )
    return file


def _check_held(path: Path, tensor: Any) -> None:
    """Refuse a tensor that has not as many numbers as its sizes say."""
    import onnx

    count, bits = prod(tensor.dims), _bits(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        wanted, count_there, unit = count, len(tensor.string_data), "texts"
    elif tensor.HasField("raw_data"):
        wanted, count_there, unit = _bytes(count, bits), len(tensor.raw_data), "bytes"
    else:
        # Numbers of less than a byte are packed; a complex number takes two.
        complex_ = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
        wanted = 2 * count if complex_ else _bytes(count, bits) if bits < 8 else count
        count_there, unit = max(len(getattr(tensor, field)) for field in FIELDS), "numbers"
    if wanted != count_there:
        raise UnsupportedModel(
            f"{path}: {tensor.name or 'a constant'} of the sizes {list(tensor.dims)} should hold {wanted:,} {unit}, "
            f"and holds {count_there:,}; it is damaged: copy or export the model again"
        )


def _bits(tensor: Any) -> int:
    import onnx_ir as ir

    try:
        return round(8 * ir.DataType(tensor.data_type).itemsize)
    except (TypeError, ValueError):
        return 8


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)
