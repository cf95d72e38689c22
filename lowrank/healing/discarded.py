"""The values that an adapter begins with: the best part of what truncation left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import nn

from lowrank.backends.inputs import Feed, Signature, spread
from lowrank.backends.torch.inputs import in_float32
from lowrank.backends.torch.joint_moments import ModulePair
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.replicas import jobs_for
from lowrank.backends.torch.tensors import module_in_float32
from lowrank.core.linalg.eigen import Matrix
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.refit import Joint
from lowrank.healing.adapter import NAME
from lowrank.nn import LowRankLinear, PivotedLinear

RIDGE = 1e-2
"""Of the ridge toward the difference of the weights, in units of the mean variance of an input."""
TOKENS = 1 << 15
"""Of the data that are used, at most; the hidden states of one block for all of them are in memory twice."""

_lapack: Any = scipy.linalg


def begin_with_the_discarded(
    module: nn.Module, dense: ModuleBackend, small: ModuleBackend, feeds: Sequence[Feed]
) -> int:
    """Start each adapter as the best part of what its layer lacks, one layer after the other.

    What a layer lacks is the dense layer's output less its own, regressed on the inputs that it sees behind the
    adapters before it, with a ridge toward the difference of the weights; the leading directions of that, in the
    metric of those inputs, are the adapter (reduced-rank regression, Izenman 1975). Of a layer as it was truncated
    they are what truncation left out; after a refit, which has made up for some of that, they are what is still
    worth adding. At full rank the module gives what the dense one gives.

    Layers whose channels stand for something else than those of the dense layer (narrower ones) start from nothing.

    Args:
        module: the compressed module, with adapters that give nothing yet.
        dense: the original.
        small: the compressed model, for the records of its layers.
        feeds: data.

    Returns:
        How many adapters have begun so.
    """
    assert isinstance(dense.signature, Signature)
    original, signature = module_in_float32(dense.module).eval(), in_float32(dense.signature)
    records = {name: record for name, record in small.replaced.items() if record["kind"] == "linear"}
    weights = {w.name: w for w in dense.weights if w.name in records and _is_factored(module, w.layers[0].name)}
    rows = {n: np.array(records[n].get("rows", range(w.rows)), np.int64) for n, w in weights.items()}
    jobs = min(map(jobs_for, (original, module)))
    pair = ModulePair(original, module, signature, spread(feeds, TOKENS), (), jobs)
    for stage in pair.stages(list(weights.values())):
        for name, (joint, _) in pair.joint(stage, rows).items():
            wanted = dense.read(name)[rows[name]]
            wanted = wanted if "cols" not in records[name] else wanted[:, records[name]["cols"]]
            _begin(module.get_submodule(weights[name].layers[0].name), wanted, joint, name)
    return len(weights)


def _begin(layer: Any, wanted: Matrix, joint: Joint, name: str) -> None:
    base = layer.get_base_layer()
    weight = base.weight.detach().double().cpu().numpy()
    bias = 0.0 if base.bias is None else base.bias.detach().double().cpu().numpy()[:, None]
    difference, scale = wanted - weight, float(np.trace(joint.inputs)) / len(joint.inputs)
    if not scale > 0:
        return
    lacking = joint.cross - weight @ joint.inputs - bias * joint.input_total
    damped = joint.inputs + RIDGE * scale * np.eye(len(joint.inputs))
    target = lacking + RIDGE * scale * difference
    rest = _lapack.solve(damped, target.T, assume_a="pos", check_finite=False).T
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    gram = Gram("input", joint.inputs, joint.tokens, float(np.trace(joint.inputs)))
    factors = directions(rest, gram, name=name).truncate(rest, min(len(a), *rest.shape))
    with torch.no_grad():
        a.zero_()
        b.zero_()
        a[: factors.rank].copy_(torch.from_numpy(np.asarray(factors.right)))
        b[:, : factors.rank].copy_(torch.from_numpy(np.asarray(factors.left)))


def _is_factored(module: nn.Module, path: str) -> bool:
    layer: Any = module.get_submodule(path)
    return hasattr(layer, "get_base_layer") and isinstance(layer.get_base_layer(), LowRankLinear | PivotedLinear)
