"""An `onnx_ir.Model` as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank.backends.onnx.constants import constants_of, tensor_of

# Above this the weights go to a file of their own beside the graph, page-aligned so that a runtime can map it; a single
# protobuf file cannot pass 2 GB.
INLINE_BYTES = 1 << 30
PAGE = 4096


def save_model(model: Any, path: Path, beside: bool = False) -> None:
    """Write `path`, and `path.data` with the numbers if they are many, or belong `beside` the graph anyway."""
    import onnx_ir as ir

    if beside or sum(tensor_of(value).nbytes for value in constants_of(model)) > INLINE_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data", alignment=PAGE, align_threshold=PAGE)
    else:
        ir.save(model, path)
