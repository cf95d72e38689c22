"""ONNX out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowrank.errors import ExportError

if TYPE_CHECKING:
    from lowrank.backends import Backend

Profile = Literal["portable", "ort"]
"""What a graph is for: any runtime of the last years, or ONNX Runtime, with its own operators."""

OPSET = 20
"""Old enough for any runtime of the last years, new enough for a Gelu operator."""

IR_VERSION = 9
"""Of the file format: onnxruntime 1.17 reads no later one."""

WITH_PAST_FILE = "model_with_past.onnx"

__all__ = ["IR_VERSION", "OPSET", "WITH_PAST_FILE", "Profile", "check_profile", "write_onnx", "write_with_past"]

OLDEST = (1, 22, 1)
"""ONNX Runtime before it gives wrong numbers for fused attention on padded batches."""


def check_profile(profile: Profile) -> None:
    """Nothing, if the runtime here can check what is written for a profile.

    Raises:
        ExportError: with its version.
    """
    if profile == "portable":
        return
    import onnxruntime

    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:3] if part.isdigit())
    if found < OLDEST:
        raise ExportError(
            f"--profile ort is for onnxruntime {'.'.join(map(str, OLDEST))} and later, and here is "
            f"{onnxruntime.__version__}, which gives wrong numbers for padded batches; use --profile portable"
        )


def write_onnx(backend: Backend, path: Path, opset: int | None = None, profile: Profile = "portable") -> None:
    """Write a model as an ONNX file (and `path.data` beside it, if it is large).

    A model that came as ONNX keeps the operator set that it has. See `edge.fuse` for what a profile is.

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
        _fit(path, profile)
        return
    from lowrank.backends.torch import ModuleBackend
    from lowrank.edge.export import export_onnx

    assert isinstance(backend, ModuleBackend)
    export_onnx(backend.module, backend.signature, path, opset or OPSET)
    _fit(path, profile)


def _fit(path: Path, profile: Profile) -> None:
    if profile == "ort":
        from lowrank.edge.fuse import fuse_file

        fuse_file(path)


def write_with_past(backend: Backend, folder: Path, opset: int | None = None, profile: Profile = "portable") -> Path:
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
    _fit(folder / WITH_PAST_FILE, profile)
    return folder / WITH_PAST_FILE
