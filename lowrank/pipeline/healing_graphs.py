"""Healing of a graph: from a run's ONNX file to modules that can be trained, and back into the graph's initializers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.artifacts import read_json
from lowrank.artifacts.files import RECORD_FILE
from lowrank.backends.base import Backend
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.onnx.backend import OnnxBackend
from lowrank.backends.onnx.edit import with_initializers
from lowrank.backends.onnx.load import load_model
from lowrank.backends.onnx.read_back import take_out
from lowrank.backends.onnx.vectors import vectors_of
from lowrank.core.analysis import Analysis
from lowrank.core.plan import Plan
from lowrank.core.structures.base import Replacement
from lowrank.errors import ArtifactError, HealingError, first_line
from lowrank.pipeline.run.layout import MODEL_FOLDER
from lowrank.results.report import ONNX_FILE

if TYPE_CHECKING:
    from torch import nn

    from lowrank.backends.torch.graph import GraphModule
    from lowrank.backends.torch.module import ModuleBackend

NEAR = 1e-2
"""Of the largest number of an output: how far torch may be from ONNX Runtime."""


def model_in(
    folder: Path, dense: Backend, analysis: Analysis, plan: Plan, layers: Callable[[], Mapping[str, Replacement]]
) -> Backend:
    """The compressed model of a run as it is in its files; of a graph, the very nodes and numbers of the run's.

    Args:
        folder: of the run.
        dense: the model that it was made from.
        analysis: of that model.
        plan: of the run.
        layers: see `Backend.saved_in`.

    Raises:
        ArtifactError: if the run has no model.
    """
    if not isinstance(dense, OnnxBackend):
        return dense.saved_in(folder, layers)
    path = folder / ONNX_FILE
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; compress the original again")
    record = read_json(folder / MODEL_FOLDER / RECORD_FILE, "model")
    model, _ = load_model(path)
    return _backend_of(replace(dense, folder=folder), model, analysis, plan, record["replaced"])


def _backend_of(
    like: OnnxBackend, model: Any, analysis: Analysis, plan: Plan, replaced: Mapping[str, Mapping[str, Any]]
) -> OnnxBackend:
    """The backend of a compressed graph, whose dense one has the products of its factors."""
    whole = model.clone()
    layers, _ = take_out(whole, analysis, plan.options, {name: r.get("tensors", {}) for name, r in replaced.items()})
    full = replace(
        like, model=whole, path=None, declared=like.signature, tried=True, dense=None, replacements={}, replaced={}
    )
    there = {weight.name for weight in full.weights}
    known = {name: layer for name, layer in layers.items() if name in there}
    return replace(full, model=model, dense=full, replacements=known, replaced=replaced)


def as_modules(dense: Backend, small: Backend, feed: Feed) -> tuple[Backend, Backend]:
    """Two backends whose modules can be trained: themselves, or modules of their graphs.

    Args:
        dense: the teacher.
        small: the student; of a graph its factors, biases and norms are the parameters.
        feed: on which the modules are compared with ONNX Runtime.

    Raises:
        HealingError: if no factor can be trained, or torch does not compute what ONNX Runtime computes.
        UnsupportedModel: if an operator cannot be computed in torch.
    """
    if not isinstance(dense, OnnxBackend) or not isinstance(small, OnnxBackend):
        return dense, small
    from lowrank.backends.torch.graph import module_of_graph

    signature, records = dense.signature, dict[str, dict[str, Any]]()
    factors = {tensor for record in small.replaced.values() for tensor in record.get("tensors", {}).values()}
    student = module_of_graph(small.model, {*factors, *vectors_of(small.model)})
    parameters = {initializer: name for name, initializer in student.initializers.items()}
    for name, record in small.replaced.items():
        own = [parameters[tensor] for tensor in record.get("tensors", {}).values() if tensor in parameters]
        if own:
            records[name] = {**record, "layers": own}
    if not records:
        raise HealingError(
            "no factor of the compressed graph is a float32 initializer of its main graph, so none can be trained; "
            "heal the torch model that it was exported from"
        )
    teacher = _as_backend(dense, module_of_graph(dense.model, ()), signature, {})
    pupil = _as_backend(small, student, signature, records)
    for graph, module in ((dense, teacher), (small, pupil)):
        _check_same(graph, module, feed)
    return teacher, pupil


def _as_backend(
    graph: OnnxBackend, module: GraphModule, signature: Signature | str, replaced: Mapping[str, Mapping[str, Any]]
) -> ModuleBackend:
    from lowrank.backends.torch.module import ModuleBackend

    return ModuleBackend(module, graph.source, signature, {"kind": "graph"}, replaced=replaced)


def _check_same(graph: OnnxBackend, module: ModuleBackend, feed: Feed) -> None:
    """Check that a module gives what its graph gives.

    Raises:
        HealingError: if it does not, or does not run.
    """
    try:
        made = module.outputs(feed)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise HealingError(f"the graph does not run in torch ({first_line(error)}); heal the torch model") from None
    for name, wanted in graph.outputs(feed).items():
        scale = float(np.abs(wanted).max(initial=1e-6))
        if made[name].shape != wanted.shape or not np.abs(made[name] - wanted).max(initial=0.0) <= NEAR * scale:
            raise HealingError(
                f"torch computes another {name} from the graph than ONNX Runtime, so it cannot be trained; heal the "
                "torch model that it was exported from"
            )


def with_trained(small: Backend, module: nn.Module, analysis: Analysis, plan: Plan) -> Backend:
    """The compressed model with what was trained; a graph gets it in its own initializers, and is the same else.

    Args:
        small: the compressed model.
        module: that was trained: its own, or that of `as_modules`.
        analysis: of the dense model.
        plan: that the compressed model follows.
    """
    if not isinstance(small, OnnxBackend):
        return small
    from lowrank.backends.torch.graph import GraphModule

    assert isinstance(module, GraphModule)
    numbers = {
        initializer: module.get_parameter(name).detach().cpu().numpy().copy()
        for name, initializer in module.initializers.items()
    }
    return _backend_of(small, with_initializers(small.model, numbers), analysis, plan, small.replaced)
