"""Fused operators of ONNX Runtime in the place of the small ones that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from lowrank.backends.onnx.passes.store_once import store_once
from lowrank.backends.onnx.save import load_whole, save_model
from lowrank.errors import ExportError, first_line


def fuse(model: Any) -> Any:
    """Fuse attention, norms and gelu of an `onnx_ir.Model`, which is changed.

    A norm and the addition before it stay two nodes: the operator for both is slower on CPUs than they are.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    from onnxscript.rewriter.ort_fusions import _core

    def leave(model: Any, **_: object) -> int:
        return 0

    try:
        with mock.patch.multiple(_core, fuse_skip_layer_normalization=leave, fuse_skip_rms_normalization=leave):
            fused = _core.optimize_for_ort(model)[0]
    except Exception as error:
        raise ExportError(f"the graph could not be fused: {first_line(error)}; use --profile portable") from error
    # A fused operator takes its weights in a layout of its own, and makes them anew for each place.
    store_once(fused)
    return fused


def fuse_file(path: Path) -> None:
    """Fuse what is in a file, in place.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    save_model(fuse(load_whole(path)), path)
