"""A graph in ONNX Runtime: as it is, with other numbers in its weights, or with inner values as outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.inputs import Feed
from lowrank.backends.onnx.constants import constants_of, tensor_of
from lowrank.backends.onnx.save import MESSAGE_BYTES, save_model
from lowrank.backends.ort_session import in_fixed_batches, run_session, start_session, typed
from lowrank.errors import ExportError, first_line


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
        only: Sequence[str] = (),
    ) -> None:
        """Start a session.

        Args:
            model: an `onnx_ir.Model`; it is not changed.
            folder: where its external tensors are.
            path: the file that holds just this model, if there is one.
            open_weights: initializers, by name, that become inputs, so that every run can give other numbers.
            extra: names of values of the main graph that become outputs too.
            only: names of values that become its only outputs; what they do not need is not run.
        """
        import onnx_ir as ir

        given = {output.name for output in model.graph.outputs}
        shown = model.clone() if open_weights or extra or only else model
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
            if name not in given and not values[name].is_graph_input():
                shown.graph.outputs.append(values[name])
        if only:
            shown.graph.outputs[:] = [values[name] for name in only if not values[name].is_graph_input()]
        self.outputs = [output.name for output in shown.graph.outputs]
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        try:
            if shown is model and path is not None:
                self.session = start_session(path)
            elif _inline_bytes(shown) < MESSAGE_BYTES:
                self.session = start_session(ir.serde.serialize_model(shown).SerializeToString(), folder=folder)
            else:
                # One protobuf message cannot pass 2 GB.
                self._spill = tempfile.TemporaryDirectory()
                spilled = Path(self._spill.name) / "model.onnx"
                save_model(shown, spilled, beside=True)
                self.session = start_session(spilled)
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None

    def __call__(
        self, feed: Feed, names: Sequence[str], weights: Mapping[str, NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """The named outputs of one run."""
        import onnxruntime as ort

        if not self.weights:
            return run_session(self.session, names, feed)
        if not self._own:
            self._own = {k: ort.OrtValue.ortvalue_from_numpy(t.numpy()) for k, t in self.weights.items()}

        def run(part: Feed) -> list[NDArray[Any]]:
            # The arrays must outlive the run: a value borrows their memory.
            fed = {k: np.ascontiguousarray(a) for k, a in (*part.items(), *(weights or {}).items())}
            given = {k: ort.OrtValue.ortvalue_from_numpy(a) for k, a in fed.items()}
            return [value.numpy() for value in self.session.run_with_ort_values(list(names), {**self._own, **given})]

        return in_fixed_batches(self.session, typed(self.session, feed), run)


def _values_of(graph: Any) -> dict[str, Any]:
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    return values | {value.name: value for node in graph for value in node.outputs}


def _inline_bytes(model: Any) -> int:
    import onnx_ir as ir

    tensors = (tensor_of(value) for value in constants_of(model))
    return sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
