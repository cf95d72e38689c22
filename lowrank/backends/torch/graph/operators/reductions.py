"""Operators that make one number of many, along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lowrank.backends.torch.graph.operators.node import NodeFacts, Operator, given_ints, ints

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: Reduction, node: NodeFacts, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Along some axes, or all of them where none are given, unless the node says that this means none."""
    along = given_ints(node, "axes", axes)
    keep = bool(node.get("keepdims", 1))
    if along:
        return function(x, along, keep)
    # A square is taken of each number all the same.
    return function(x, [] if node.get("noop_with_empty_axes", 0) else list(range(x.dim())), keep)


def _sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return x.sum(tuple(axes), keepdim=keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    if not axes:
        return x
    if x.is_floating_point():
        return x.mean(tuple(axes), keepdim=keep)
    return x.double().mean(tuple(axes), keepdim=keep).to(x.dtype)


def _max(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return x.amax(tuple(axes), keepdim=keep) if axes else x


def _min(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return x.amin(tuple(axes), keepdim=keep) if axes else x


def _prod(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    places = sorted((axis % x.dim() for axis in axes), reverse=True)
    for axis in places:
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _log_sum_exp(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return x.logsumexp(tuple(axes), keepdim=keep) if axes else x


def _l2(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    total = _sum(x * x, axes, keep)
    return total.sqrt() if x.is_floating_point() else total.double().sqrt().to(x.dtype)


def _arg(largest: bool, node: NodeFacts, x: Tensor) -> Tensor:
    """The place of the largest or smallest number, the first of several or the last."""
    axis, keep = int(node.get("axis", 0)), bool(node.get("keepdims", 1))
    find = torch.argmax if largest else torch.argmin
    if not node.get("select_last_index", 0):
        return find(x, dim=axis, keepdim=keep)
    return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=keep)


def _softmax(function: Callable[..., Tensor], node: NodeFacts, x: Tensor) -> Tensor:
    """Until operator set 12 over all axes from one on, later along one."""
    if node.opset >= 13:
        return function(x, dim=int(node.get("axis", -1)))
    axis = int(node.get("axis", 1)) % max(x.dim(), 1)
    return function(x.flatten(axis), dim=axis).reshape(x.shape) if axis < x.dim() else torch.ones_like(x)


def _cumulative_sum(node: NodeFacts, x: Tensor, axis: Tensor) -> Tensor:
    (along,) = ints(axis)
    x = x.flip(along) if node.get("reverse", 0) else x
    total = x.cumsum(along, dtype=x.dtype)
    if node.get("exclusive", 0):
        total = total - x
    return total.flip(along) if node.get("reverse", 0) else total


REDUCTIONS: dict[str, Operator] = {
    "ArgMax": partial(_arg, True),
    "ArgMin": partial(_arg, False),
    "CumSum": _cumulative_sum,
    "LogSoftmax": partial(_softmax, torch.log_softmax),
    "ReduceL1": partial(_reduce, lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": partial(_reduce, _l2),
    "ReduceLogSum": partial(_reduce, lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": partial(_reduce, _log_sum_exp),
    "ReduceMax": partial(_reduce, _max),
    "ReduceMean": partial(_reduce, _mean),
    "ReduceMin": partial(_reduce, _min),
    "ReduceProd": partial(_reduce, _prod),
    "ReduceSum": partial(_reduce, _sum),
    "ReduceSumSquare": partial(_reduce, lambda x, axes, keep: _sum(x * x, axes, keep)),
    "Softmax": partial(_softmax, torch.softmax),
}
