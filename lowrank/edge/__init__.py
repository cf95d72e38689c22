"""ONNX out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import ExportError

if TYPE_CHECKING:
    from lowrank.backends import Backend

OPSET = 20
"""Old enough for any runtime of the last years, new enough for a Gelu operator."""

__all__ = ["OPSET", "write_onnx"]


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
