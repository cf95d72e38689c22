"""A graph in ONNX Runtime: as it is, with other numbers in its weights, and with what its weights see as outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import Feed
from lowrank.backends.onnx.constants import tensor_of
from lowrank.backends.onnx.describe import constants_of
from lowrank.errors import ExportError, first_line

INLINE_BYTES = 1 << 30


class Runner:
    """One session over a model in memory.

    The model's large external tensors stay in their file, which the runtime maps.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        path: Path | None = None,
        open_weights: Sequence[str] = (),
        extra: Sequence[str] = (),
    ) -> None:
        """Start a session.

        Args:
            model: an `onnx_ir.Model`; it is not changed.
            folder: where its external tensors are.
            path: the file that holds just this model, if there is one.
            open_weights: initializers, by name, that become inputs, so that every run can give other numbers.
            extra: names of values of the main graph that become outputs too.
        """
        import onnx_ir as ir

        self.names = [output.name for output in model.graph.outputs]
        shown = model.clone() if open_weights or extra else model
        self.weights: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        values = _values_of(shown.graph)
        for name in open_weights:
            value = shown.graph.initializers.pop(name)
            self.weights[name] = value.const_value
            value.const_value = None
            if value not in shown.graph.inputs:
                shown.graph.inputs.append(value)
        for name in extra:
            if name not in self.names and not values[name].is_graph_input():
                shown.graph.outputs.append(values[name])
        self.outputs = [output.name for output in shown.graph.outputs]
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        if shown is model and path is not None:
            self.session = _session(str(path), folder)
        elif _inline_bytes(shown) < INLINE_BYTES:
            self.session = _session(ir.serde.serialize_model(shown).SerializeToString(), folder)
        else:
            # One protobuf message cannot pass 2 GB.
            self._spill = tempfile.TemporaryDirectory()
            spilled = Path(self._spill.name) / "model.onnx"
            ir.save(shown, spilled, external_data="model.onnx.data")
            self.session = _session(str(spilled), spilled.parent)
        self.inputs = {i.name: _TYPES.get(i.type) for i in self.session.get_inputs()}

    def __call__(
        self, feed: Feed, names: Sequence[str], weights: Mapping[str, NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """The named outputs of one run."""
        import onnxruntime as ort

        if not self.weights:
            return self.session.run(list(names), {k: _typed(feed[k], dtype) for k, dtype in self.inputs.items()})
        if not self._own:
            self._own = {k: ort.OrtValue.ortvalue_from_numpy(t.numpy()) for k, t in self.weights.items()}
        # The arrays must outlive the run: a value borrows their memory.
        fed = {k: _typed(feed[k], dtype) for k, dtype in self.inputs.items() if k in feed} | dict(weights or {})
        fed = {k: np.ascontiguousarray(a) for k, a in fed.items()}
        held = {k: ort.OrtValue.ortvalue_from_numpy(a) for k, a in fed.items()}
        return [value.numpy() for value in self.session.run_with_ort_values(list(names), {**self._own, **held})]


_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def _typed(array: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)


def _values_of(graph: Any) -> dict[str, Any]:
    found = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    return found | {value.name: value for node in graph for value in node.outputs}


def _inline_bytes(model: Any) -> int:
    import onnx_ir as ir

    tensors = (tensor_of(value) for value in constants_of(model))
    return sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))


def _session(content: bytes | str, folder: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Its errors come as exceptions too.
    options.log_severity_level = 4
    # Between runs numpy works: threads that wait by spinning would take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(content, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None
