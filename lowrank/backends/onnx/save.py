"""An `onnx_ir.Model` as a file, and back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lowrank.artifacts.files import linked
from lowrank.backends.onnx.constants import constants_of, tensor_of

INLINE_BYTES = 4 << 20
"""Above this the weights go to a file of their own beside the graph, page-aligned, which a runtime maps: what it does
not read takes no memory."""
MESSAGE_BYTES = 1 << 30
"""Bytes: half of what one protobuf message can hold."""
PAGE = 4096


def save_model(model: Any, path: Path, beside: bool = False, aligned: int = PAGE) -> None:
    """Write `path`, and `path.data` with the numbers if they are many, or belong `beside` the graph anyway.

    Tensors of so many bytes or more are `aligned` to pages, so that they can be mapped.
    """
    import onnx_ir as ir

    data = path.with_name(f"{path.name}.data")
    if beside or sum(tensor_of(value).nbytes for value in constants_of(model)) > INLINE_BYTES:
        ir.save(model, path, external_data=data.name, alignment=PAGE, align_threshold=aligned)
    else:
        ir.save(model, path)
        data.unlink(missing_ok=True)


def load_whole(path: Path) -> Any:
    """The model in a file with all its numbers in memory, so that the file can be written anew."""
    import onnx_ir as ir

    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def copy_graph(source: Path, target: Path) -> None:
    """Copy a graph to another name; its numbers, if they lie beside it, keep theirs, which several graphs may share."""
    shutil.copyfile(source, target)
    data = source.with_name(f"{source.name}.data")
    beside = target.with_name(data.name)
    if data.is_file() and beside != data:
        # What is there may be mapped: it is not written over.
        beside.unlink(missing_ok=True)
        shutil.copyfile(data, beside)


def renamed(source: Path, target: Path, suffix: str = ".data") -> Path:
    """A file under another name, and its numbers, if they lie beside it, under that name with a suffix.

    Numbers beside it are linked; only the graph, which names their file, is written.
    """
    import onnx_ir as ir

    data = source.with_name(f"{source.name}.data")
    if not data.is_file():
        linked(str(source), str(target))
        return target
    beside = target.with_name(f"{target.name}{suffix}")
    linked(str(data), str(beside))
    model = ir.load(source)
    for value in constants_of(model):
        tensor = tensor_of(value)
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = in_file(tensor, beside, tensor.offset or 0, tensor.name or "")
    ir.save(model, target)
    return target


def in_file(tensor: Any, file: Path, offset: int, name: str) -> Any:
    """A tensor whose numbers are read from an offset of a file on."""
    import onnx_ir as ir

    place = (file.name, offset, tensor.nbytes)
    return ir.ExternalTensor(*place, tensor.dtype, shape=tensor.shape, name=name, base_dir=file.parent)


def file_size(path: Path) -> int:
    """Bytes of a graph's file and of the file of numbers beside it."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())
