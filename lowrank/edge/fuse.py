"""Fused operators of ONNX Runtime in the place of the small ones that they stand for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from lowrank.backends.onnx.passes.store_once import store_once
from lowrank.backends.onnx.save import load_whole, save_model
from lowrank.errors import ExportError, first_line

FOLDED = 64
"""Numbers of a constant, at most, from which others are computed beforehand in a graph with packed codes."""


def fuse(model: Any) -> Any:
    """Fuse attention, norms and gelu of an `onnx_ir.Model`, which is changed.

    A norm and the addition before it stay two nodes: the operator for both is slower on CPUs than they are.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    from onnxscript.optimizer import optimize
    from onnxscript.rewriter.ort_fusions import _core

    def leave(model: Any, **_: object) -> int:
        return 0

    changes: dict[str, Any] = {"fuse_skip_layer_normalization": leave, "fuse_skip_rms_normalization": leave}
    if _has_bytes(model):
        # Unpacked, small factors would take more bytes than they had to begin with.
        changes["optimize"] = partial(optimize, input_size_limit=FOLDED)
    try:
        with mock.patch.multiple(_core, **changes):
            fused = _core.optimize_for_ort(model)[0]
    except Exception as error:
        raise ExportError(f"the graph could not be fused: {first_line(error)}; use --profile portable") from error
    # A fused operator takes its weights in a layout of its own, and makes them anew for each place.
    store_once(fused)
    return fused


def _has_bytes(model: Any) -> bool:
    """Whether a graph holds packed codes."""
    return any(value.dtype is not None and value.dtype.name == "UINT8" for value in model.graph.initializers.values())


def fuse_file(path: Path) -> None:
    """Fuse what is in a file, in place.

    Raises:
        ExportError: if the graph cannot be fused.
    """
    save_model(fuse(load_whole(path)), path)
