"""How much of the neighbourhoods among vectors is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from lowrank.core.ranking import neighbours, rankings, similarity_spearman


@given(st.integers(0, 1000), st.integers(3, 60), st.floats(0, 3))
def test_rankings_are_those_of_scikit_learn(seed: int, count: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((count, 8))
    other = dense + apart * rng.standard_normal((count, 8))
    k, found = neighbours(count), rankings(dense, other)
    sims = [v @ v.T for v in (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (dense, other))]
    for i in range(count):
        a, b = (np.delete(s[i], i) for s in sims)
        relevant = np.zeros(count - 1)
        relevant[np.argsort(-a)[:k]] = 1
        assert found[i] == pytest.approx(ndcg_score([relevant], [b], k=k))
    assert similarity_spearman(dense, other) == pytest.approx(
        spearmanr(*(s[np.triu_indices(count, 1)] for s in sims)).statistic
    )


@given(st.integers(0, 1000))
def test_only_neighbourhoods_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((40, 6))
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert rankings(dense, 3 * dense @ turn).min() == pytest.approx(1)
    assert rankings(dense, rng.standard_normal((40, 6))).mean() < 0.5
