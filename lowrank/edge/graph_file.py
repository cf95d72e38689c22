"""Writing a model as a graph, and giving the graph the types and operators that it is to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.errors import ExportError

if TYPE_CHECKING:
    from lowrank.backends import Backend
    from lowrank.backends.inputs import Feed, Signature
    from lowrank.core.rounding.formats import Stored
from lowrank.backends.onnx.opset import OPSET
from lowrank.edge.target import Target

WITH_PAST_FILE = "model_with_past.onnx"


def write_onnx(backend: Backend, path: Path, opset: int | None = None) -> None:
    """Write a model as an ONNX file (and `path.data` beside it, if it is large).

    With standard operators and the model's own numbers; see `fit_file` for others. A model that came as ONNX keeps the
    operator set that it has.

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
    from lowrank.backends.torch.export import export_onnx

    assert isinstance(backend, ModuleBackend)
    export_onnx(backend.module, backend.signature, path, opset or OPSET)


def fit_file(
    path: Path,
    target: Target,
    signature: Signature,
    feeds: Sequence[Feed] = (),
    stored: Mapping[str, Stored] | None = None,
    plain: bool = False,
) -> list[str]:
    """Round and fuse what `write_onnx` wrote, in place, as far as a target asks for it.

    Args:
        path: the file.
        target: what it is to be for.
        signature: how the model is fed.
        feeds: calibration data for rounding; see `edge.quantize`.
        stored: of a `mixed` target, how each weight is stored.
        plain: only round, which takes as many bytes.

    Returns:
        Remarks on what stayed as it was.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    notes = list[str]()
    if target.is_rounded:
        from lowrank.edge.quantize import quantize_file

        notes = quantize_file(path, target.dtype, signature, feeds, plain, stored)
    if target.profile == "ort":
        from lowrank.edge.fuse import fuse_file

        fuse_file(path)
    if target.is_rounded:
        from lowrank.backends.onnx.passes.tidy import pack_file

        pack_file(path)
    return notes


def write_with_past(backend: Backend, folder: Path, opset: int | None = None) -> Path:
    """Write `model_with_past.onnx` to a folder: the same model with its key-value cache.

    Raises:
        ExportError: if it has none, or came as ONNX, where a graph has the inputs that it has.
    """
    if backend.source["kind"] == "onnx":
        raise ExportError("an ONNX model keeps the inputs that it has; export it with its cache first")
    from lowrank.backends.torch import ModuleBackend
    from lowrank.backends.torch.export_cache import export_with_past
    from lowrank.backends.torch.tensors import module_in_float32

    if not isinstance(backend, ModuleBackend):
        raise ExportError(f"--with-past cannot be had: {backend.signature}")
    export_with_past(module_in_float32(backend.module), folder / WITH_PAST_FILE, opset)
    return folder / WITH_PAST_FILE
