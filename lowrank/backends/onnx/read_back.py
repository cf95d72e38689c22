"""A finished graph read back: pairs of factors, and the graph with their products in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.backends.onnx.backend import OnnxBackend
from lowrank.backends.onnx.edit import finish, initializer, new_node
from lowrank.backends.onnx.load import load_model
from lowrank.backends.onnx.open import backend_of, refuse_quantised
from lowrank.backends.onnx.sites import settings_of
from lowrank.core.analysis import Analysis
from lowrank.core.match import stem
from lowrank.core.structures import structure_named
from lowrank.core.structures.base import Option, Replacement
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.pivoted import Pivoted
from lowrank.core.weight import Weight


@dataclass(frozen=True, eq=False)
class FinishedGraph:
    """What a graph was made into, and what of it can be changed."""

    backend: OnnxBackend
    """The graph with one product in the place of each pair of factors that could be read."""
    replacements: Mapping[str, Replacement]
    """The factors that could be read, by weight name."""
    fixed: Mapping[str, str]
    """Groups that stay as they are, each with the reason."""


def read_graph(
    path: Path, analysis: Analysis, options: Sequence[Option], tensors: Mapping[str, Mapping[str, str]], tokenizer: Path
) -> FinishedGraph:
    """Take a finished graph apart.

    Args:
        path: the file.
        analysis: of the original.
        options: what was chosen.
        tensors: by weight name what the tensors of its factors are called, where that is known.
        tokenizer: where it would be.

    Raises:
        UnsupportedModel: if it is damaged, or its weights are rounded.
    """
    model, outside = load_model(path)
    refuse_quantised(path, model)
    replacements, fixed = take_out(model, analysis, options, tensors)
    backend = backend_of(path, model, outside, tokenizer)
    there = {weight.name: weight.shape for weight in backend.weights}
    for option in options:
        for name in analysis.groups[option.group].weights:
            if option.group not in fixed and there.get(name) != analysis[name].weight.shape:
                fixed[option.group] = "there is no weight of this name and shape in the graph"
    return FinishedGraph(backend, replacements, fixed)


def take_out(
    model: Any, analysis: Analysis, options: Sequence[Option], tensors: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, Replacement], dict[str, str]]:
    """Put products in the places of a graph's factors, in `model` itself.

    Args:
        model: an `onnx_ir.Model`.
        analysis: of the original.
        options: what was chosen.
        tensors: by weight name what the tensors of its factors are called, where that is known.

    Returns:
        The factors that could be read, by weight name; and the groups that stay as they are, each with the reason.
    """
    replacements: dict[str, Replacement] = {}
    fixed: dict[str, str] = {}
    for option in options:
        structure = structure_named(option.structure)
        if not structure.replaces:
            continue
        if not structure.by_rank:
            fixed[option.group] = f"{option.structure}: the graph does not say which channels were kept"
            continue
        (name,) = analysis.groups[option.group].weights
        weight = analysis[name].weight
        names = {**_named(weight), **tensors.get(name, {})}
        factors = _read(model, weight, names, structure.factors if issubclass(structure.factors, Factors) else Factors)
        if isinstance(factors, str):
            fixed[option.group] = factors
        else:
            replacements[name] = Replacement(option.structure, factors)
    return replacements, fixed


def _named(weight: Weight) -> dict[str, str]:
    """What an exporter calls the tensors of a layer's factors."""
    layer = weight.layers[0].name if weight.layers and weight.layers[0].name else stem(weight.name)
    return {which: f"{layer}.{which}.weight" for which in ("left", "right")}


def _read(model: Any, weight: Weight, names: Mapping[str, str], kind: type[Factors]) -> Factors | Pivoted | str:
    """The factors of a weight, which its product has taken the places of; or why they cannot be read.

    Args:
        model: the graph, in which a product takes their places.
        weight: what they replaced.
        names: of the tensors that hold them.
        kind: the class of two plain factors.
    """
    left, right = (model.graph.initializers.get(names[which]) for which in ("left", "right"))
    if left is None or right is None or left.const_value is None or right.const_value is None:
        return "its factors were not found in the graph"
    pairs = [_pair(node, right, left) for node in right.consumers()]
    wanted = {id(node) for node in left.consumers()}
    if not pairs or any(pair is None for pair in pairs) or wanted != {id(pair.outer) for pair in pairs if pair}:
        return f"its factors are read by other operators than products ({_operators(right, left)})"
    matched = [pair for pair in pairs if pair is not None]
    if len({(pair.at, pair.order is None) for pair in matched}) > 1:
        return "its factors are read in several ways"
    first = matched[0]
    a, b = (np.asarray(value.const_value.numpy(), np.float64) for value in (right, left))
    a, b = (a.T, b.T) if first.at == 1 else (a, b)
    factors = kind(b, a) if first.order is None else Pivoted(b, a, first.order)
    matrix = np.asarray(factors.product(), np.float64)
    if matrix.shape != weight.shape:
        return f"its factors are of {matrix.shape[0]} x {matrix.shape[1]}"
    orders = [pair.last.inputs[1] for pair in matched if pair.order is not None]
    _put_product(model, weight, matched, matrix, right.const_value)
    for value in (right, left, *orders):
        if not value.uses():
            model.graph.initializers.pop(value.name, None)
    return factors


def _operators(*values: Any) -> str:
    return ", ".join(sorted({node.op_type for value in values for node in value.consumers()}))


@dataclass(frozen=True, eq=False)
class _Pairing:
    """The operators of one layer: `last` gives what it gave."""

    inner: Any
    outer: Any
    last: Any
    at: int
    """The position of the factors among the operands of their products: 0 or 1."""
    order: NDArray[np.int64] | None = None


def _pair(inner: Any, right: Any, left: Any) -> _Pairing | None:
    """The layer whose first operator this is; None if it is none."""
    if inner.domain not in ("", "ai.onnx") or inner.op_type not in ("MatMul", "Gather"):
        return None
    table = inner.op_type == "Gather"
    at = 1 if table else _place(inner, right)
    if table and (inner.inputs[0] is not right or inner.attributes.get_int("axis", 0) != 0):
        return None
    latent = inner.outputs[0]
    readers = list(latent.consumers())
    outer = next((node for node in readers if node.op_type == "MatMul" and left in node.inputs), None)
    if outer is None or latent.is_graph_output() or _place(outer, left) != at:
        return None
    if len(readers) == 1:
        return _Pairing(inner, outer, outer, at)
    return None if table else _pivoted(inner, outer, readers, at)


def _pivoted(inner: Any, outer: Any, readers: Sequence[Any], at: int) -> _Pairing | None:
    """A layer whose other outputs follow from those that are computed, put in order by one Gather."""
    joint = next((node for node in readers if node.op_type == "Concat"), None)
    if joint is None or len(readers) != 2 or list(joint.inputs) != [inner.outputs[0], outer.outputs[0]]:
        return None
    followers = list(joint.outputs[0].consumers())
    last = followers[0] if len(followers) == 1 else None
    if last is None or last.op_type != "Gather" or list(outer.outputs[0].consumers()) != [joint]:
        return None
    order = last.inputs[1].const_value
    return None if order is None else _Pairing(inner, outer, last, at, np.asarray(order.numpy(), np.int64))


def _place(node: Any, value: Any) -> int:
    return next(i for i, operand in enumerate(node.inputs) if operand is value)


def _put_product(model: Any, weight: Weight, pairs: Sequence[_Pairing], matrix: NDArray[np.float64], like: Any) -> None:
    """One product, or one lookup, in the place of each pair."""
    turned = pairs[0].at == 1
    numbers = np.ascontiguousarray(matrix.T if turned else matrix).astype(like.numpy().dtype)
    value = initializer(model.graph, weight.name, numbers, like.dtype)
    for pair in pairs:
        inner, last = pair.inner, pair.last
        vectors = inner.inputs[1] if inner.op_type == "Gather" else inner.inputs[1 - pair.at]
        operands = [value, vectors] if inner.op_type == "Gather" or not turned else [vectors, value]
        product = new_node(inner.op_type, operands, settings_of(inner), name=last.name)
        joints = [reader for reader in inner.outputs[0].consumers() if reader.op_type == "Concat"]
        finish(last, product)
        for old in (*joints, pair.outer, inner):
            if old.graph is not None:
                old.graph.remove(old, safe=True)
