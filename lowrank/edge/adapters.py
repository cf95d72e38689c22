"""Adapters for ONNX Runtime: a graph that takes them as inputs, and a file for each of them.

A graph input that is also an initializer is one that a run may leave out. The matrices of an adapter are such inputs,
of rank 0 by themselves, where a product of no columns adds nothing; `onnxruntime.LoraAdapter` gives others at a run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.backends.inputs import Signature
from lowrank.backends.onnx.edit import rename
from lowrank.backends.onnx.opset import OPSET
from lowrank.backends.onnx.save import save_model
from lowrank.backends.ort_session import start_session, typed
from lowrank.backends.torch.export import export_graph
from lowrank.backends.torch.inputs import call, in_float32
from lowrank.backends.torch.layers import put
from lowrank.backends.torch.module import as_array
from lowrank.errors import ExportError
from lowrank.nn import Adaptable

RANK_DIM = "lora_r"
VERSION = 1
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""

Residuals = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Of each layer `A` (inputs x rank) and `B` (rank x outputs), the scale included."""


def export_adaptable(
    module: nn.Module, signature: Signature, shapes: Mapping[str, tuple[int, int]], path: Path, opset: int = OPSET
) -> None:
    """Write a graph to which every run may give an adapter of any rank; without one it is the module.

    Args:
        module: the compressed model, without adapters.
        signature: how it is fed.
        shapes: (inputs, outputs) of each layer that can be adapted.
        path: of the file.
        opset: the operator set.

    Raises:
        ExportError: if it cannot be traced.
    """
    import onnx_ir as ir

    wide = copy.deepcopy(module).float()
    for seed, (name, (inputs, outputs)) in enumerate(shapes.items()):
        # Numbers that are like no others, so that none is taken for a constant that is there already.
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(size, generator=generator) for size in ((inputs, 2), (2, outputs)))
        put(wide, name, Adaptable(wide.get_submodule(name), a, b))
    model = export_graph(wide, signature, opset)
    graph = model.graph
    for name, (inputs, outputs) in shapes.items():
        for key, none, dims in (
            ("lora_A", np.zeros((inputs, 0), np.float32), [inputs, RANK_DIM]),
            ("lora_B", np.zeros((0, outputs), np.float32), [RANK_DIM, outputs]),
        ):
            value = graph.initializers.get(f"{name}.{key}")
            if value is None:
                raise ExportError(f"{name}: the exporter has changed the place of an adapter in the graph")
            value.const_value = ir.tensor(none, name=value.name)
            value.shape = ir.Shape(dims)
            graph.inputs.append(value)
    for name in shapes:
        for value in list(graph.initializers.values()):
            # Layers keep the names that they have without adapters.
            if value.name.startswith(f"{name}.layer."):
                rename(graph, value, f"{name}.{value.name.removeprefix(f'{name}.layer.')}")
    # Of shapes that were found with another rank nothing is left to contradict the new ones.
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    save_model(model, path)


def check_adapter(module: nn.Module, signature: Signature, residuals: Residuals, graph: Path, adapter: Path) -> None:
    """Check that a graph gives what the module does, with an adapter and without it.

    Raises:
        ExportError: if it does not.
    """
    import onnxruntime

    session = start_session(graph)
    loaded, active = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    loaded.Load(str(adapter))
    active.add_active_adapter(loaded)
    signature = in_float32(signature)
    plain = copy.deepcopy(module).float().eval()
    adapted = copy.deepcopy(plain)
    for name, (a, b) in residuals.items():
        put(adapted, name, Adaptable(adapted.get_submodule(name), torch.from_numpy(a), torch.from_numpy(b)))
    feed = signature.example(2, min(9, signature.max_sequence))
    for label, model, run in (("without", plain, None), ("with", adapted, active)):
        with torch.no_grad():
            wanted = {name: as_array(output) for name, output in call(signature, model, feed).items()}
        outputs = session.run(list(wanted), typed(session, feed), run)
        for (name, ours), theirs in zip(wanted.items(), outputs, strict=True):
            difference = float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-6))
            if not difference <= TOLERANCE:
                raise ExportError(f"{name} of {graph.name} {label} an adapter differs by {difference:.1e}")


def write_adapter(residuals: Residuals, path: Path) -> None:
    """Write an `.onnx_adapter` for a graph that `export_adaptable` made.

    Example:
        adapter = onnxruntime.LoraAdapter()
        adapter.Load("polite.onnx_adapter")
        options = onnxruntime.RunOptions()
        options.add_active_adapter(adapter)
        session.run(None, inputs, options)
    """
    import onnxruntime

    # The runtime's values borrow the arrays' memory: these must live until the file is written.
    arrays = {
        f"{name}.{key}": np.ascontiguousarray(value, np.float32)
        for name, pair in residuals.items()
        for key, value in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(VERSION)
    file.set_model_version(VERSION)
    file.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()})
    try:
        # Its annotation says a path; it takes text alone.
        file.export_adapter(str(path))  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise ExportError(f"cannot write {path}: {error}") from None
