"""RotaryPairs: fewer pairs of channels a head, between query and key with rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank.core.analysis import Analysis, CouplingAnalysis, Folds, Numbers
from lowrank.core.linalg.eigen import Matrix, Vector
from lowrank.core.structures.base import Replacement
from lowrank.core.structures.coupled import FewerChannels, inputs_known
from lowrank.core.structures.product import seen_outputs
from lowrank.core.truncation.attention import blocks, of_group, pairs_of
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.narrow import Narrow
from lowrank.core.weight import ROTARY, Coupling, Group


@dataclass(frozen=True)
class RotaryPairs(FewerChannels):
    """Rank is the number of pairs of a head that stay.

    Positions turn the two channels of a pair together, so no other coordinates are free, but pairs can be left out.
    What one adds to a score is `Re(conj(q) e^(i t) k)` with a phase t that runs over the positions: on average its
    square is `E|q|^2 E|k|^2 / 2`, and different pairs, which turn at different speeds, do not add up (the score of
    MoDeGPT, ICLR 2025, section 3, and A3, 2025, squared).
    """

    name: str = "rotary"
    fits: ClassVar[str] = "query and key of one attention with rotary positions"
    channels: ClassVar[int] = 2
    unit: ClassVar[str] = "channel pairs"

    def measure(self, coupling: Coupling, grams: Mapping[str, Folds], numbers: Numbers) -> CouplingAnalysis | None:
        """Held-out errors at every number of pairs; None without the moments, or for another coupling."""
        if coupling.kind not in ROTARY or not all(inputs_known(grams, name) for name in coupling.weights):
            return None
        chosen = _energies(coupling, {n: grams[n].fit for n in coupling.weights}, numbers)
        judged = _energies(coupling, {n: grams[n].judge for n in coupling.weights}, numbers)
        energies = np.take_along_axis(judged, _order(chosen), 1).sum(0)
        total = float(energies.sum())
        lost = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        errors = lost / total if total > 0 else np.zeros_like(lost)
        return CouplingAnalysis(Group.of(coupling), self.name, np.arange(len(errors), dtype=np.int64), errors)

    def factorize(self, group: Group, rank: int, analysis: Analysis, numbers: Numbers) -> Mapping[str, Replacement]:
        """The rows of both weights that stay; zeros take the place of the others."""
        coupling = group.coupling
        assert coupling is not None
        order = _order(_energies(coupling, {n: analysis.grams[n].fit for n in coupling.weights}, numbers))[:, :rank]
        query, key = coupling.weights
        replacements: dict[str, Replacement] = {}
        for name, heads in ((query, coupling.heads), (key, coupling.kv_heads)):
            weight, bias = numbers.read(name), numbers.bias(name)
            width = len(weight) // heads
            own = np.repeat(order, heads // coupling.kv_heads, 0)
            channels = np.sort(pairs_of(coupling.kind, width)[own].reshape(heads, -1), 1)
            rows = (channels + width * np.arange(heads)[:, None]).ravel()
            spread = np.full(len(weight), -1, np.int64)
            spread[rows] = np.arange(len(rows))
            narrow = Narrow(weight[rows], outputs=spread, padded=True, rank=rank)
            replacements[name] = Replacement(self.name, narrow, None if bias is None else bias[rows])
        return replacements

    def each(self, coupling: Coupling, analysis: Analysis) -> int:
        """Numbers for each pair of a head."""
        query, key = (analysis[name].weight for name in coupling.weights)
        return 2 * (coupling.heads * query.cols + coupling.kv_heads * key.cols)


def _energies(coupling: Coupling, grams: Mapping[str, Gram], numbers: Numbers) -> Vector:
    """What each pair of each key head adds to the scores of the queries that it serves: kv heads x pairs."""
    query, key = (seen_outputs(numbers.read(n), grams[n], numbers.bias(n)) for n in coupling.weights)
    outer, inner = of_group(blocks(query, coupling.heads), coupling.kv_heads), blocks(key, coupling.kv_heads)
    return _of_pairs(outer, coupling) * _of_pairs(inner, coupling)


def _of_pairs(moments: Matrix, coupling: Coupling) -> Matrix:
    energies = np.einsum("hii->hi", moments)
    return energies[:, pairs_of(coupling.kind, energies.shape[1])].sum(-1)


def _order(energies: Vector) -> NDArray[np.int64]:
    """The pairs of each head, those first that matter most."""
    return np.argsort(-energies, axis=1, kind="stable").astype(np.int64)
