"""ONNX out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import ExportError

if TYPE_CHECKING:
    from lowrank.backends import Backend

OPSET = 20
"""Old enough for any runtime of the last years, new enough for a Gelu operator."""

WITH_PAST_FILE = "model_with_past.onnx"

__all__ = ["OPSET", "WITH_PAST_FILE", "write_onnx", "write_with_past"]


def write_onnx(backend: Backend, path: Path, opset: int | None = None) -> None:
    """Write a model as an ONNX file (and `path.data` beside it, if it is large).

    A model that came as ONNX keeps the operator set that it has.

    Raises:
        ExportError: if it cannot be traced, or cannot be run at all.
    """
    from lowrank.backends.inputs import Signature

    if not isinstance(backend.signature, Signature):
        raise ExportError(f"{backend.source['path'] or 'the model'} cannot be exported: {backend.signature}")
    if backend.source["kind"] == "onnx":
        from lowrank.backends.onnx import OnnxBackend

        assert isinstance(backend, OnnxBackend)
        backend.write(path)
        return
    from lowrank.backends.torch import ModuleBackend
    from lowrank.edge.export import export_onnx

    assert isinstance(backend, ModuleBackend)
    export_onnx(backend.module, backend.signature, path, opset or OPSET)


def write_with_past(backend: Backend, folder: Path, opset: int | None = None) -> Path:
    """Write `model_with_past.onnx` to a folder: the same model with its key-value cache.

    Raises:
        ExportError: if it has none, or came as ONNX, where a graph has the inputs that it has.
    """
    if backend.source["kind"] == "onnx":
        raise ExportError("an ONNX model keeps the inputs that it has; export it with its cache first")
    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.tensors import module_in_float32
    from lowrank.edge.cache import export_with_past

    if not isinstance(backend, ModuleBackend):
        raise ExportError(f"--with-past cannot be had: {backend.signature}")
    export_with_past(module_in_float32(backend.module), folder / WITH_PAST_FILE, opset)
    return folder / WITH_PAST_FILE
