"""Attention as the products that it is: fewer channels a head between query and key, and between value and output.

A score is `q'k = x' Wq' Wk x`, a head's output `Wo z` with `z` a mixture of values. The channels of a head can have any
coordinates, so it is the product that is truncated, not the factors. Nothing is added to the graph, and any width below
the full one saves (MoDeGPT, ICLR 2025, and A3, 2025, truncate the same products in other metrics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowrank.core.linalg.eigen import Matrix, Vector, eigh_descending
from lowrank.core.truncation.directions import trailing_blocks
from lowrank.core.truncation.factors import even_share

FLOOR = 1e-10
"""The least eigenvalue that a root is taken of, as a share of the largest, so that the root can be inverted."""


@dataclass(frozen=True, eq=False)
class Channels:
    """For each head the coordinates in which truncation keeps the first ones: `down` first, `up` after it.

    Both are heads x width x width; `up[h][:, :r] @ down[h][:r]` projects a head's channels on r of them.
    """

    down: Matrix
    up: Matrix


def channels(outer: Matrix, inner: Matrix, *, name: str = "attention") -> Channels:
    """Coordinates of each head's channels that make every truncation optimal.

    Minimises `tr A (I - M) T (I - M)'` over projections M of rank r: `A^(1/2) M = U_r U_r' A^(1/2)` with `U_r` the
    leading eigenvectors of `A^(1/2) T A^(1/2)`. Between query and key, A is the moment of the queries (of all that
    share the key head) and T that of the keys: the error is that of the scores, `E (q'k - q'Mk)^2` for independent
    tokens. Between value and output, T is the moment of the mixed values and `A = Wo' Wo`: the error is that of
    the output.

    Args:
        outer: A, heads x width x width.
        inner: T, of the same shape.
        name: what to call it in an error.
    """
    downs: list[Matrix] = []
    ups: list[Matrix] = []
    for a, t in zip(outer, inner, strict=True):
        root, inverse = _roots(a, name)
        energies, chosen = eigh_descending(root @ t @ root, name=name)
        # Channels of an energy far from one are shared out evenly, as 16 bits would not hold them on one side alone.
        share = even_share(float(energies[0]) ** 0.5)
        downs.append(chosen.T @ root / share)
        ups.append(inverse @ chosen * share)
    return Channels(np.stack(downs), np.stack(ups))


def channel_curve(chosen: Channels, outer: Matrix, inner: Matrix) -> Vector:
    """Squared relative error at width 0 ... full on moments that need not be those that chose the coordinates."""
    total, lost = 0.0, np.zeros(outer.shape[-1] + 1)
    for down, up, a, t in zip(chosen.down, chosen.up, outer, inner, strict=True):
        # In the chosen coordinates the projection cuts, so what is lost are the blocks beyond the width.
        a_seen, t_seen = up.T @ a @ up, down @ t @ down.T
        product = a_seen * t_seen
        total += float(product.sum())
        lost += trailing_blocks(product)
    return np.maximum(lost, 0.0) / total if total > 0 else np.zeros_like(lost)


def _roots(symmetric: Matrix, name: str) -> tuple[Matrix, Matrix]:
    values, vectors = eigh_descending(symmetric, name=name)
    values = np.maximum(values, FLOOR * (values[0] or 1.0))
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def blocks(matrix: Matrix, heads: int) -> Matrix:
    """The diagonal blocks of a moment, one a head: heads x width x width."""
    width = matrix.shape[0] // heads
    return np.stack([matrix[i * width : (i + 1) * width, i * width : (i + 1) * width] for i in range(heads)])


def of_group(per_head: Matrix, groups: int) -> Matrix:
    """Summed over the neighbouring heads that share a key and value head."""
    return per_head.reshape(groups, -1, *per_head.shape[1:]).sum(1)


def pairs_of(kind: str, width: int) -> NDArray[np.int64]:
    """The two channels of each pair that rotary positions turn: pairs x 2.

    Example:
        >>> pairs_of("rotary_halves", 4).tolist(), pairs_of("rotary_neighbours", 4).tolist()
        ([[0, 2], [1, 3]], [[0, 1], [2, 3]])
    """
    channels = np.arange(width, dtype=np.int64)
    return channels.reshape(2, -1).T if kind == "rotary_halves" else channels.reshape(-1, 2)


def spread_of(heads: int, width: int, full: int) -> NDArray[np.int64]:
    """Where each of heads x full channels comes from among heads x width; -1 for those that are zero."""
    sources = np.full((heads, full), -1, np.int64)
    sources[:, :width] = np.arange(heads * width).reshape(heads, width)
    return sources.ravel()


def picks_of(heads: int, width: int, full: int) -> NDArray[np.int64]:
    """The heads x width channels that are not zero among heads x full."""
    return (np.arange(heads)[:, None] * full + np.arange(width)).ravel()
