"""ONNX out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank.errors import ExportError

if TYPE_CHECKING:
    from lowrank.backends import Backend
    from lowrank.backends.inputs import Feed, Signature
    from lowrank.core.formats import Stored

Profile = Literal["portable", "ort"]
"""What a graph is for: any runtime of the last years, or ONNX Runtime, with its own operators."""

Dtype = Literal["float32", "float16", "int8", "int4", "nbits4", "mixed"]
"""What weights are stored in. Integers are also computed with, in eight bits; `nbits4` is what ONNX Runtime has
operators of its own for, `mixed` is as the plan says for each weight."""

OPSET = 20
"""Old enough for any runtime of the last years, new enough for a Gelu operator."""

IR_VERSION = 9
"""Of the file format: onnxruntime 1.17 reads no later one."""

WITH_PAST_FILE = "model_with_past.onnx"

__all__ = [
    "IR_VERSION",
    "OPSET",
    "WITH_PAST_FILE",
    "Dtype",
    "Profile",
    "Target",
    "file_size",
    "fit_file",
    "write_onnx",
    "write_with_past",
]

OLDEST = (1, 22, 1)
"""ONNX Runtime before it gives wrong numbers for fused attention on padded batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What graphs are written for."""

    profile: Profile = "portable"
    dtype: Dtype = "float32"

    @classmethod
    def of(cls, known: Mapping[str, Any] | None) -> Target:
        """That of a report's `onnx`."""
        return cls(**{name: known[name] for name in ("profile", "dtype") if known and name in known})

    @property
    def is_rounded(self) -> bool:
        """Whether what is written gives other numbers than the model."""
        return self.dtype != "float32"

    def check(self) -> None:
        """Nothing, if the runtime here can check what is written.

        Raises:
            ExportError: with what to ask for instead.
        """
        if self.profile == "portable":
            if self.dtype == "nbits4":
                raise ExportError(
                    "nbits4 is operators of ONNX Runtime, which --profile portable leaves out; use --profile ort, or "
                    "--quantize int4"
                )
            return
        import onnxruntime

        found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:3] if part.isdigit())
        if found < OLDEST:
            raise ExportError(
                f"--profile ort is for onnxruntime {'.'.join(map(str, OLDEST))} and later, and here is "
                f"{onnxruntime.__version__}, which gives wrong numbers for padded batches; use --profile portable"
            )


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
    from lowrank.edge.export import export_onnx

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
        from lowrank.edge.tidy import pack_file

        pack_file(path)
    return notes


def file_size(path: Path) -> int:
    """Bytes of a graph with the numbers beside it."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())


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
