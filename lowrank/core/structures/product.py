"""Product: fewer channels a head, between query and key or between value and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.coupled import FewerChannels, inputs_known
from lowrank.core.truncation.attention import Channels, blocks, channel_curve, channels, of_group, picks_of, spread_of
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.weight import Coupling, Group


@dataclass(frozen=True)
class Product(FewerChannels):
    """Rank is the width of a head: rank / width of the coupling's numbers, no operator more, and no break-even."""

    name: str = "product"
    fits: ClassVar[str] = "query and key, or value and output, of one attention"
    leading_channels: ClassVar[bool] = True
    drops_bias: ClassVar[bool] = True

    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """Errors at every width; None without the moments, or for another coupling."""
        if coupling.kind not in ("query_key", "value_output") or not _has_moments(coupling, grams):
            return None
        outer, inner = _moments(coupling, {n: grams[n].fit for n in coupling.weights}, numbers)
        judge = {n: grams[n].judge for n in coupling.weights}
        chosen = channels(outer, inner, name=coupling.weights[0])
        errors = channel_curve(chosen, *_moments(coupling, judge, numbers))
        return CouplingAnalysis(Group.of(coupling), self.name, np.arange(len(errors), dtype=np.int64), errors)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """Both weights with fewer channels; biases are folded, see `_query_key` and `_value_output`."""
        coupling = group.coupling
        assert coupling is not None
        chosen = channels(
            *_moments(coupling, {n: analysis.grams[n].fit for n in coupling.weights}, numbers), name=group.name
        )
        return (_query_key if coupling.kind == "query_key" else _value_output)(
            self.name, coupling, chosen, rank, numbers
        )

    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for each channel of a head."""
        first, second = (analysis[name].weight for name in coupling.weights)
        if coupling.kind == "query_key":
            return coupling.heads * first.cols + coupling.kv_heads * second.cols
        return coupling.kv_heads * first.cols + coupling.heads * second.rows


def _has_moments(coupling: Coupling, grams: Mapping[str, Folds]) -> bool:
    needed = coupling.weights if coupling.kind == "query_key" else coupling.weights[1:]
    return all(inputs_known(grams, name) for name in needed) and all(name in grams for name in coupling.weights)


def _moments(coupling: Coupling, grams: Mapping[str, Gram], numbers: Numbers) -> tuple[Matrix, Matrix]:
    """A and T of `channels`, a matrix for each key and value head."""
    first, second = coupling.weights
    if coupling.kind == "query_key":
        query = seen_outputs(numbers.read(first), grams[first], numbers.bias(first))
        # The key's bias adds the same to all scores of a query, which softmax does not see.
        key = seen_outputs(numbers.read(second), grams[second], None)
        return of_group(blocks(query, coupling.heads), coupling.kv_heads), blocks(key, coupling.kv_heads)
    output, gram = numbers.read(second), grams[second]
    shift, mean = _folded(coupling, numbers), gram.mean
    moment = gram.moment / max(gram.tokens, 1)
    if shift is not None:
        moment = moment - np.outer(mean, shift) - np.outer(shift, mean) + np.outer(shift, shift)
    reading = blocks(output.T @ output, coupling.heads)
    return of_group(reading, coupling.kv_heads), of_group(blocks(moment, coupling.heads), coupling.kv_heads)


def seen_outputs(weight: Matrix, gram: Gram, bias: Vector | None) -> Matrix:
    """`E[y y']` of `y = W x + b`."""
    moment = weight @ (gram.moment / max(gram.tokens, 1)) @ weight.T
    if bias is None:
        return moment
    drift = np.outer(weight @ gram.mean, bias)
    return moment + drift + drift.T + np.outer(bias, bias)


def _folded(coupling: Coupling, numbers: Numbers) -> Vector | None:
    """The bias of the values as it arrives at the output layer, if that has a bias that can take it over.

    Rows of attention sum to one, so that it arrives in full at every mixture.
    """
    value, output = (numbers.bias(name) for name in coupling.weights)
    if value is None or output is None:
        return None
    return _for_queries(value.reshape(coupling.kv_heads, -1), coupling).ravel()


def _for_queries(per_head: Matrix, coupling: Coupling) -> Matrix:
    """What belongs to key and value heads, once for each query head."""
    return np.repeat(per_head, coupling.heads // coupling.kv_heads, 0)


def _query_key(
    structure: str, coupling: Coupling, chosen: Channels, rank: int, numbers: Numbers
) -> dict[str, Replacement]:
    """`q' = up' q`, `k' = down k`: their product is `q' up down k`. The bias of the key is dropped: softmax cancels
    it."""
    query, key = coupling.weights
    ups = _for_queries(chosen.up[:, :, :rank], coupling).swapaxes(1, 2)
    downs = chosen.down[:, :rank]
    bias = numbers.bias(query)
    return {
        query: _outputs(
            structure, numbers.read(query), coupling.heads, ups, None if bias is None else _per_head(ups, bias)
        ),
        key: _outputs(
            structure, numbers.read(key), coupling.kv_heads, downs, None if numbers.bias(key) is None else np.zeros(0)
        ),
    }


def _value_output(
    structure: str, coupling: Coupling, chosen: Channels, rank: int, numbers: Numbers
) -> dict[str, Replacement]:
    """`v' = down v`, `Wo' = Wo up`. The bias of the values goes into that of the output, where there is one."""
    value, output = coupling.weights
    downs = chosen.down[:, :rank]
    ups = _for_queries(chosen.up[:, :, :rank], coupling)
    weight, bias = numbers.read(output), numbers.bias(value)
    full = downs.shape[2]
    narrow = np.concatenate([weight[:, h * full : (h + 1) * full] @ up for h, up in enumerate(ups)], axis=1)
    shift, output_bias = _folded(coupling, numbers), None
    if shift is not None:
        before = numbers.bias(output)
        assert before is not None
        output_bias, bias = before + weight @ shift, np.zeros(0)
    elif bias is not None:
        bias = _per_head(downs, bias)
    picks = picks_of(coupling.heads, rank, full)
    return {
        value: _outputs(structure, numbers.read(value), coupling.kv_heads, downs, bias),
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
