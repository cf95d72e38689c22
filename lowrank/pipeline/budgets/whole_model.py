"""Times of operators by themselves, made true to what they take inside the model.

In a model a product finds its weights and inputs colder than where it runs alone, and what is not a product takes time,
too. Two models of other ranks tell both: the dense one, and one with the smallest factors everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lowrank.backends import Opening
from lowrank.core.selection.timings import Timings, products_of
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.two_factor import TwoFactor
from lowrank.core.truncation.factors import Factors
from lowrank.core.weight import Weight

LEAST, MOST = 0.5, 3.0
"""What products inside a model can take, as multiples of their time alone: beyond that it is noise."""


def write_smallest(dense: Path, path: Path, table: Timings) -> list[Weight]:
    """Write a graph with factors of the smallest rank in the place of each product that was timed; these weights.

    Args:
        dense: the graph of the dense model.
        path: of the new one.
        table: what was timed.
    """
    from lowrank.backends.onnx.open import read_onnx

    graph, rank = read_onnx(dense, Opening()), table.step
    timed = {(first, second) for first, second, _ in table.points.get("product", ())}
    weights = [
        weight
        for weight in graph.weights
        if weight.is_linear and weight.stack == 1 and min(weight.shape) > rank and products_of(weight)[1:] in timed
    ]
    name = TwoFactor().name
    thin = {w.name: Factors(np.zeros((w.rows, rank)), np.zeros((rank, w.cols))) for w in weights}
    graph.rewrite({name_of: Replacement(name, factors) for name_of, factors in thin.items()}).write_onnx(path)
    return weights


def corrected(tables: Mapping[str, Timings], weights: list[Weight], smallest: float) -> dict[str, Timings]:
    """The tables, each with its products as they are inside the model.

    Args:
        tables: by type, each with the time of the whole dense model in it; that of float32 among them.
        weights: those that the smallest model has in factors, in float32.
        smallest: microseconds of that model.
    """
    plain = tables["float32"]
    dense = sum(plain.dense(weight) for weight in weights)
    thin = sum(plain.product(w.cols, plain.step) + plain.product(plain.step, w.rows) for w in weights)
    assert plain.whole is not None
    if dense <= thin or plain.whole <= smallest:
        return dict(tables)
    # Thin factors run warmer than dense matrices; all products together take no longer than the model.
    scale = min(float(np.clip((plain.whole - smallest) / (dense - thin), LEAST, MOST)), plain.whole / dense)
    rest = plain.whole - scale * dense
    found: dict[str, Timings] = {}
    for dtype, table in tables.items():
        assert table.whole is not None
        products = sum(table.dense(weight) for weight in weights)
        own = min(float(np.clip((table.whole - rest) / products, LEAST, MOST)), table.whole / products)
        found[dtype] = _scaled(table, scale if table is plain else own)
    return found


def _scaled(table: Timings, scale: float) -> Timings:
    products = [(first, second, scale * time) for first, second, time in table.points["product"]]
    return replace(table, points={**table.points, "product": products})
