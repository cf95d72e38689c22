"""How much of the neighbourhoods among some vectors is kept by others of the same samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank.core.distance import Array, unit

NEAREST = 10
"""How many of the nearest others are looked at."""
BLOCK = 1024
"""Rows of similarities that are in memory at a time."""


def neighbours(count: int) -> int:
    """How many nearest others are looked at among so many samples: ten, and fewer where that is most of them.

    Example:
        >>> neighbours(200), neighbours(41), neighbours(5)
        (10, 4, 1)
    """
    return min(max((count - 1) // NEAREST, 1), NEAREST)


def rankings(dense: Array, other: Array) -> Array:
    """For each sample nDCG@k of the ranking of all others by the other vectors; relevant are the k nearest by the dense
    ones.

    Similarity is the cosine. nDCG is the discounted cumulative gain, `sum 1 / log2(1 + place)` over the relevant ones
    among the first k, as a share of the largest (Järvelin and Kekäläinen 2002).

    Args:
        dense: samples x width, two or more.
        other: of the same samples.
    """
    k = neighbours(len(dense))
    gains = 1 / np.log2(np.arange(2, k + 2))
    found: list[Array] = []
    for start in range(0, len(dense), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(dense)))
        near, ranked = (_nearest(unit(vectors), rows, k) for vectors in (dense, other))
        found.append(((ranked[:, :, None] == near[:, None, :]).any(-1) * gains).sum(-1))
    return np.concatenate(found) / gains.sum()


def _nearest(vectors: Array, rows: Array, k: int) -> Array:
    """The k most similar others of some rows, the most similar first."""
    similar = vectors[rows] @ vectors.T
    similar[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-similar, axis=1, kind="stable")[:, :k]


def similarity_spearman(dense: Array, other: Array) -> float:
    """Spearman's correlation of the cosines of all pairs of samples."""
    pairs = np.triu_indices(len(dense), 1)
    return spearman(np.stack([(unit(v) @ unit(v).T)[pairs] for v in (dense, other)], 1))


def spearman(pairs: Array) -> float:
    """Spearman's rank correlation of two columns, ties having their mean rank; NaN where one is constant."""
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    ranks: Any = stats

    a, b = (rank - rank.mean() for rank in np.asarray(ranks.rankdata(pairs, axis=0), np.float64).T)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan
