"""Operators on each number by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.backends.torch.graph.operators.node import TYPES, NodeFacts, Operator, refused


def _plain(function: Callable[..., Tensor], node: NodeFacts, *inputs: Tensor) -> Tensor:
    """A function of torch that takes the inputs as they are and has no settings."""
    return function(*inputs)


def _over_all(function: Callable[[Tensor, Tensor], Tensor], node: NodeFacts, *inputs: Tensor) -> Tensor:
    """A function of two tensors, over any number of them."""
    return reduce(function, inputs)


def _mean(node: NodeFacts, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _div(node: NodeFacts, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(node: NodeFacts, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    if base.is_floating_point():
        return torch.pow(base, exponent.to(base.dtype))
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


def _mod(node: NodeFacts, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def _clip(node: NodeFacts, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Until operator set 10 the ends are attributes."""
    if low is None and "min" in node.attributes:
        x = x.clamp(min=node.get("min"))
    if high is None and "max" in node.attributes:
        x = x.clamp(max=node.get("max"))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _cast(node: NodeFacts, x: Tensor) -> Tensor:
    return x.to(TYPES[int(node.get("to"))])


def refuses_cast(node: NodeFacts) -> str | None:
    """A cast to a type that torch does not compute in."""
    return None if int(node.get("to")) in TYPES else f"casts to the type number {node.get('to')}"


def _cast_like(node: NodeFacts, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _gelu(node: NodeFacts, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


def _fast_gelu(node: NodeFacts, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _bias_gelu(node: NodeFacts, x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias)


def _quick_gelu(node: NodeFacts, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


def _swish(node: NodeFacts, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def _leaky_relu(node: NodeFacts, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def _prelu(node: NodeFacts, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _elu(node: NodeFacts, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


def _celu(node: NodeFacts, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


def _selu(node: NodeFacts, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


def _hard_sigmoid(node: NodeFacts, x: Tensor) -> Tensor:
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0.0, 1.0)


def _thresholded_relu(node: NodeFacts, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def _is_inf(node: NodeFacts, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if node.get("detect_negative", 1) else found


def _dropout(
    node: NodeFacts, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Nothing is dropped: models are compared as they are used.

    Raises:
        UnsupportedModel: if an input says that the graph is for training.
    """
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise refused(node, "is told to drop numbers at random")
    return (x, torch.ones_like(x, dtype=torch.bool)) if node.outputs > 1 else x


SAME: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
ELEMENTWISE: dict[str, Operator] = {
    **{name: partial(_plain, function) for name, function in SAME.items()},
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda node, x: x,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "Max": partial(_over_all, torch.maximum),
    "Mean": _mean,
    "Min": partial(_over_all, torch.minimum),
    "Mod": _mod,
    "PRelu": _prelu,
    "Pow": _pow,
    "Selu": _selu,
    "Sum": partial(_over_all, torch.add),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
MICROSOFT_ELEMENTWISE: dict[str, Operator] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
}
