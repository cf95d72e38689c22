"""ONNX Runtime sessions, opened and fed one way everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import Feed, batch_size, common_size, in_batches_of

DTYPES = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ("float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")},
}
"""Types of numpy by the names that ONNX has for them."""


def start_session(content: bytes | Path, *, threads: int = 1, folder: Path | None = None) -> Any:
    """A CPU session with full graph optimisation; errors are ONNX Runtime's own.

    Args:
        content: a file, or a model in memory.
        threads: inside an operator; batches, which threads run at once, are what keeps all cores busy.
        folder: where the external tensors of a model in memory are.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Its errors come as exceptions too.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = content if isinstance(content, bytes) else str(content)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, names: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
    """The named outputs of one batch."""
    return in_fixed_batches(session, typed(session, feed), lambda part: session.run(list(names), part))


def in_fixed_batches(session: Any, values: Feed, run: Callable[[Feed], Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """What a run gives of one batch; a graph that takes a fixed number of samples is run as often as that takes."""
    shapes = (i.shape for i in session.get_inputs() if i.name in values)
    size = common_size([shape[0] for shape in shapes if shape])
    if not size or batch_size(values) == size:
        return list(run(values))
    parts = [[output[:own] for output in run(part)] for part, own in in_batches_of(size, values)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def typed(session: Any, feed: Feed) -> dict[str, NDArray[Any]]:
    """What a session reads of a feed, in its types: numpy draws half-precision inputs in single precision."""
    kinds = {i.name: i.type.removeprefix("tensor(").removesuffix(")") for i in session.get_inputs() if i.name in feed}
    wanted = {name: DTYPES.get(kind, feed[name].dtype) for name, kind in kinds.items() if kind != "bfloat16"}
    return {name: feed[name].astype(wanted.get(name, feed[name].dtype), copy=False) for name in kinds}


def floating(output: NDArray[Any]) -> NDArray[Any]:
    """An output in floating numbers: float64 of integers, float32 of halves and flags."""
    if output.dtype in (np.float32, np.float64):
        return output
    return output.astype(np.float64 if output.dtype.kind in "iu" else np.float32)
