"""Permutations absorbed: pivoted outputs that the next weight reads in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Numbers
from lowrank.core.factors import Factors
from lowrank.core.pivot import Pivoted
from lowrank.core.structures.base import Replacement
from lowrank.core.weight import Bond


def absorbed(made: Mapping[str, Replacement], bonds: Iterable[Bond], numbers: Numbers) -> dict[str, Replacement]:
    """The same function with fewer gathers: neurons may stand in any order.

    Where all weights of a feed-forward block are factored by themselves and one of the first is pivoted, its outputs
    stay as they come, and the others' outputs and the last one's inputs follow. A head's channels may not leave their
    head, and pivots are taken from all heads, so values keep their gather.

    Args:
        made: what replaces each weight.
        bonds: of the model; those of hidden neurons count.
        numbers: where the biases are.
    """
    found = dict(made)
    for bond in bonds:
        *first, last = bond.weights
        if bond.kind != "hidden" or not all(_factored(found.get(name)) for name in bond.weights):
            continue
        order = next((o for name in first if (o := _order(found[name])) is not None), None)
        if order is None:
            continue
        back = np.argsort(order)
        for name in first:
            found[name] = _outputs_in(back, found[name], numbers.bias(name))
        factors = found[last].factors
        assert isinstance(factors, Factors | Pivoted)
        found[last] = replace(found[last], factors=replace(factors, right=factors.right[:, back]))
    return found


def _factored(replacement: Replacement | None) -> bool:
    factors = replacement.factors if replacement is not None else None
    return isinstance(factors, Pivoted) or (isinstance(factors, Factors) and factors.left.ndim == 2)


def _order(replacement: Replacement) -> NDArray[np.int64] | None:
    return replacement.factors.order if isinstance(replacement.factors, Pivoted) else None


def _outputs_in(
    back: NDArray[np.int64], replacement: Replacement, layer_bias: NDArray[np.float64] | None
) -> Replacement:
    """Outputs reordered: the new one i is the former one `back[i]`."""
    factors = replacement.factors
    if isinstance(factors, Pivoted):
        before = np.arange(len(back)) if factors.order is None else factors.order
        order = before[back]
        factors = replace(factors, order=None if (order == np.arange(len(back))).all() else order)
    else:
        assert isinstance(factors, Factors)
        factors = replace(factors, left=factors.left[back])
    bias = layer_bias if replacement.bias is None else replacement.bias
    return replace(replacement, factors=factors, bias=None if bias is None else bias[back] if len(bias) else bias)
