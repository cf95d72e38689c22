"""The biases and norms of a graph: vectors that operators add to what they see, or scale it by."""

from __future__ import annotations

from typing import Any

PLACES = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "BiasGelu": (1,),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "Mul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "Sub": (0, 1),
}
"""Where among an operator's inputs a bias or a norm stands."""


def vectors_of(model: Any) -> list[str]:
    """The names of all initializers of the main graph that are biases or norms.

    Single numbers and running means are none: they are settings of a formula, or were counted. Vectors that are alike,
    which a graph has once for several layers, are none of one layer.

    Args:
        model: an `onnx_ir.Model`.
    """
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype.name == "FLOAT"
        and len(value.const_value.shape) == 1
        and value.const_value.size > 1
        and len(value.uses()) == 1
        and all(at in PLACES.get(node.op_type, ()) for node, at in value.uses())
    ]
