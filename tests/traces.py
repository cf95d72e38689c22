"""Graphs that were traced before, with other numbers: tests write the same few models again and again, a trace takes
seconds, and what it gives depends on the layers and not on what is in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from lowrank.artifacts import hash_json
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.opset import OPSET
from lowrank.backends.onnx.save import load_whole, save_model
from lowrank.backends.ort_session import typed
from lowrank.backends.torch.inputs import call, in_float32
from lowrank.backends.torch.tensors import hash_state, module_in_float32

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Traces:
    """Graphs in a folder that processes share."""

    trace: Callable[..., Any]
    """The exporter."""
    folder: Path
    refill: bool = True
    """Whether a graph of the same layers serves for other numbers; without, only for the very same ones."""

    def export_graph(self, module: nn.Module, signature: Signature, opset: int = OPSET) -> Any:
        """What the exporter gives, from the folder where that has it."""
        whole, inputs = module_in_float32(module).eval(), in_float32(signature)
        layers = _layers(whole)
        if layers is None:
            return self.trace(module, signature, opset)
        key = [layers, repr(inputs), opset]
        same = self.folder / f"{hash_json([*key, repr(whole), hash_state(whole.state_dict())])}.onnx"
        if same.exists():
            return load_whole(same)
        alike = self.folder / f"{hash_json(key)}.alike.onnx"
        arrays = {name: tensor.detach().numpy() for name, tensor in whole.state_dict().items()}
        if self.refill and alike.exists():
            graph = _filled(load_whole(alike), json.loads(alike.with_suffix(".json").read_text()), arrays)
            if graph is not None and _is_right(graph, whole, inputs):
                return graph
        graph = self.trace(module, signature, opset)
        _place(same, lambda path: save_model(graph, path))
        if not alike.exists():
            sources = _sources(graph, arrays)
            _place(alike.with_suffix(".json"), lambda path: path.write_text(json.dumps(sources)))
            _place(alike, lambda path: save_model(graph, path))
        return load_whole(same)


def _place(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole, whoever else writes it."""
    part = path.with_name(f"{os.getpid()}-{path.name}")
    write(part)
    data = part.with_name(f"{part.name}.data")
    if data.exists():
        model = load_whole(part)
        onnx.save(ir.serde.serialize_model(model), str(part))
        data.unlink()
    part.rename(path)


def _layers(module: nn.Module) -> list[Any] | None:
    """The layers without their sizes; None for a class that has no name of its own."""
    kinds = [f"{type(each).__module__}.{type(each).__qualname__}" for each in module.modules()]
    if any("<locals>" in kind or "GraphModule" in kind for kind in kinds):
        return None
    config = getattr(module, "config", None)
    held = [(name, str(tensor.dtype), tensor.dim()) for name, tensor in module.state_dict().items()]
    text = config.to_json_string() if hasattr(config, "to_json_string") else ""
    return [kinds, re.sub(r"\d+", "#", repr(module)), held, text]


def _sources(graph: Any, arrays: Arrays) -> dict[str, tuple[str, bool]]:
    """Which array each constant holds, and whether it is transposed there."""
    sources: dict[str, tuple[str, bool]] = {}
    for value in graph.graph.initializers.values():
        numbers = value.const_value.numpy()
        names = [value.name] if value.name in arrays else list(arrays) if numbers.ndim > 1 else []
        for name in names:
            ours = arrays[name]
            if np.array_equal(ours, numbers):
                sources[value.name] = (name, False)
            elif ours.ndim > 1 and np.array_equal(ours.swapaxes(-1, -2), numbers):
                sources[value.name] = (name, True)
            if value.name in sources:
                break
    return sources


def _filled(model: Any, sources: dict[str, tuple[str, bool]], arrays: Arrays) -> Any | None:
    """The graph with these numbers, and with the sizes that follow from them; None if it cannot be."""
    resized = False
    for name, (source, swapped) in sources.items():
        value, numbers = model.graph.initializers[name], arrays[source]
        numbers = np.ascontiguousarray(numbers.swapaxes(-1, -2) if swapped else numbers)
        resized |= tuple(value.shape) != numbers.shape
        value.const_value, value.shape = ir.tensor(numbers, name=name), ir.Shape(numbers.shape)
    if not resized:
        return model
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    sizes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in inferred.graph.value_info}
    for node in model.graph:
        for value in node.outputs:
            dims = sizes.get(value.name, [])
            if value.shape is not None and len(dims) == len(value.shape):
                both = zip(dims, value.shape, strict=True)
                value.shape = ir.Shape([size if size and isinstance(known, int) else known for size, known in both])
    return model


def _is_right(model: Any, module: nn.Module, signature: Signature) -> bool:
    """Whether a graph gives what its module gives, at two sizes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        graph = ir.serde.serialize_model(model).SerializeToString()
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for feed in (signature.example(2, 6), signature.example(3, 5, seed=1)):
            outputs = session.run(list(signature.output_names), typed(session, feed))
            with torch.no_grad():
                wanted = call(signature, module, feed).values()
            for ours, theirs in zip(outputs, (each.numpy() for each in wanted), strict=True):
                if ours.shape != theirs.shape or not np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max():
                    return False
    except Exception:
        return False
    return True
