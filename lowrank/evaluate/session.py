"""ONNX Runtime sessions, opened one way everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lowrank.backends.inputs import Feed
from lowrank.errors import ExportError, first_line


def open_session(path: Path, threads: int = 1) -> Any:
    """A CPU session with full graph optimisation.

    Raises:
        ExportError: if ONNX Runtime refuses the file.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {path}: {first_line(error)}; compress again") from None


def typed(session: Any, feed: Feed) -> dict[str, NDArray[Any]]:
    """The arrays in the types that a session wants: numpy draws half-precision inputs in single precision."""
    wanted = {i.name: "float16" for i in session.get_inputs() if i.type == "tensor(float16)"}
    return {name: array.astype(wanted[name]) if name in wanted else array for name, array in feed.items()}
