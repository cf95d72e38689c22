"""Product: fewer channels a head, between query and key or between value and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowrank.core.analysis import Analysis, BondAnalysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.coupled import Bonded, inputs_known
from lowrank.core.truncation.attention import (
    Channels,
    blocks,
    channel_curve,
    channels,
    of_group,
    picks_of,
    spread_of,
)
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.weight import Bond, Group


@dataclass(frozen=True)
class Product(Bonded):
    """Rank is the width of a head: rank / width of the bond's numbers, no operator more, and no break-even."""

    name: str = "product"

    def measure(self, bond: Bond, grams: Mapping[str, Folds], numbers: Numbers) -> BondAnalysis | None:
        """Errors at every width; None without the moments, or for another bond."""
        if bond.kind not in ("query_key", "value_output") or not _has_moments(bond, grams):
            return None
        outer, inner = _moments(bond, {n: grams[n].fit for n in bond.weights}, numbers)
        judge = {n: grams[n].judge for n in bond.weights}
        chosen = channels(outer, inner, name=bond.weights[0])
        errors = channel_curve(chosen, *_moments(bond, judge, numbers))
        return BondAnalysis(Group.of(bond), self.name, np.arange(len(errors), dtype=np.int64), errors)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """Both weights with fewer channels; biases are folded, see `_query_key` and `_value_output`."""
        bond = group.bond
        assert bond is not None
        chosen = channels(*_moments(bond, {n: analysis.grams[n].fit for n in bond.weights}, numbers), name=group.name)
        return (_query_key if bond.kind == "query_key" else _value_output)(self.name, bond, chosen, rank, numbers)

    def each(self, bond: Bond, analysis: Analysis) -> int:
        """Numbers for each channel of a head."""
        first, second = (analysis[name].weight for name in bond.weights)
        if bond.kind == "query_key":
            return bond.heads * first.cols + bond.kv_heads * second.cols
        return bond.kv_heads * first.cols + bond.heads * second.rows


def _has_moments(bond: Bond, grams: Mapping[str, Folds]) -> bool:
    needed = bond.weights if bond.kind == "query_key" else bond.weights[1:]
    return all(inputs_known(grams, name) for name in needed) and all(name in grams for name in bond.weights)


def _moments(bond: Bond, grams: Mapping[str, Gram], numbers: Numbers) -> tuple[Matrix, Matrix]:
    """A and T of `channels`, a matrix for each key and value head."""
    first, second = bond.weights
    if bond.kind == "query_key":
        query = seen_outputs(numbers.read(first), grams[first], numbers.bias(first))
        # The key's bias adds the same to all scores of a query, which softmax does not see.
        key = seen_outputs(numbers.read(second), grams[second], None)
        return of_group(blocks(query, bond.heads), bond.kv_heads), blocks(key, bond.kv_heads)
    output, gram = numbers.read(second), grams[second]
    shift, mean = _folded(bond, numbers), gram.mean
    moment = gram.moment / max(gram.tokens, 1)
    if shift is not None:
        moment = moment - np.outer(mean, shift) - np.outer(shift, mean) + np.outer(shift, shift)
    reading = blocks(output.T @ output, bond.heads)
    return of_group(reading, bond.kv_heads), of_group(blocks(moment, bond.heads), bond.kv_heads)


def seen_outputs(weight: Matrix, gram: Gram, bias: Vector | None) -> Matrix:
    """`E[y y']` of `y = W x + b`."""
    found = weight @ (gram.moment / max(gram.tokens, 1)) @ weight.T
    if bias is None:
        return found
    drift = np.outer(weight @ gram.mean, bias)
    return found + drift + drift.T + np.outer(bias, bias)


def _folded(bond: Bond, numbers: Numbers) -> Vector | None:
    """The bias of the values as it arrives at the output layer, if that has a bias that can take it over.

    Rows of attention sum to one, so that it arrives in full at every mixture.
    """
    value, output = (numbers.bias(name) for name in bond.weights)
    if value is None or output is None:
        return None
    return _for_queries(value.reshape(bond.kv_heads, -1), bond).ravel()


def _for_queries(per_head: Matrix, bond: Bond) -> Matrix:
    """What belongs to key and value heads, once for each query head."""
    return np.repeat(per_head, bond.heads // bond.kv_heads, 0)


def _query_key(structure: str, bond: Bond, chosen: Channels, rank: int, numbers: Numbers) -> dict[str, Replacement]:
    """`q' = up' q`, `k' = down k`: their product is `q' up down k`. The bias of the key is dropped: softmax cancels
    it."""
    query, key = bond.weights
    ups = _for_queries(chosen.up[:, :, :rank], bond).swapaxes(1, 2)
    downs = chosen.down[:, :rank]
    bias = numbers.bias(query)
    return {
        query: _outputs(
            structure, numbers.read(query), bond.heads, ups, None if bias is None else _per_head(ups, bias)
        ),
        key: _outputs(
            structure, numbers.read(key), bond.kv_heads, downs, None if numbers.bias(key) is None else np.zeros(0)
        ),
    }


def _value_output(structure: str, bond: Bond, chosen: Channels, rank: int, numbers: Numbers) -> dict[str, Replacement]:
    """`v' = down v`, `Wo' = Wo up`. The bias of the values goes into that of the output, where there is one."""
    value, output = bond.weights
    downs = chosen.down[:, :rank]
    ups = _for_queries(chosen.up[:, :, :rank], bond)
    weight, bias = numbers.read(output), numbers.bias(value)
    full = downs.shape[2]
    narrow = np.concatenate([weight[:, h * full : (h + 1) * full] @ up for h, up in enumerate(ups)], axis=1)
    shift, output_bias = _folded(bond, numbers), None
    if shift is not None:
        before = numbers.bias(output)
        assert before is not None
        output_bias, bias = before + weight @ shift, np.zeros(0)
    elif bias is not None:
        bias = _per_head(downs, bias)
    picks = picks_of(bond.heads, rank, full)
    return {
        value: _outputs(structure, numbers.read(value), bond.kv_heads, downs, bias),
        output: Replacement(structure, Narrow(narrow, inputs=picks, padded=True, rank=rank), output_bias),
    }


def _outputs(structure: str, weight: Matrix, heads: int, maps: Matrix, bias: Vector | None) -> Replacement:
    rank, full = maps.shape[1:]
    return Replacement(
        structure, Narrow(_per_head(maps, weight), outputs=spread_of(heads, rank, full), padded=True, rank=rank), bias
    )


def _per_head(maps: Matrix, numbers: Matrix) -> Matrix:
    """Each head's rows through its own map: heads x rank x width, applied to (heads width) x anything."""
    parts = numbers.reshape(len(maps), maps.shape[2], -1)
    return (maps @ parts).reshape(-1, *numbers.shape[1:])
