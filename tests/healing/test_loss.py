"""The loss of healing is the measure by which ranks are chosen: in torch and in numpy the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank.core.distance import OutputKind, Reference, cosines, pooled
from lowrank.healing.loss import hidden_loss, output_loss

KINDS: list[OutputKind] = ["logits", "embedding", "hidden"]


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(2, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 9)),
    ),
    scale=st.floats(0.05, 30.0),
    apart=st.floats(0.01, 2.0),
)
def test_torch_and_numpy_measure_the_same(
    seed: int, kind: OutputKind, shape: tuple[int, ...], scale: float, apart: float
) -> None:
    rng = np.random.default_rng(seed)
    dense = (scale * rng.standard_normal(shape)).astype(np.float32)
    small = (dense + scale * apart * rng.standard_normal(shape)).astype(np.float32)
    loss = float(output_loss(torch.from_numpy(small), torch.from_numpy(dense), kind))
    assert loss == pytest.approx(Reference([dense], kind).loss([small]), rel=1e-3, abs=1e-6)


@given(st.integers(0, 2**31), st.sampled_from(KINDS))
def test_torch_and_numpy_mask_the_same(seed: int, kind: OutputKind) -> None:
    rng = np.random.default_rng(seed)
    dense, small = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    mask = np.arange(6) < rng.integers(1, 7, 4)[:, None]
    loss = float(output_loss(torch.from_numpy(small), torch.from_numpy(dense), kind, torch.from_numpy(mask)))
    if kind == "embedding":
        expected = float(np.mean(1 - cosines(pooled(dense, mask), pooled(small, mask))))
    else:
        expected = Reference([dense[mask]], kind).loss([small[mask]])
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_masked_tokens_do_not_count() -> None:
    small, dense = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]) == 1
    spoiled = torch.where(mask[:, :, None], small, 1e6)
    for kind in KINDS:
        assert output_loss(spoiled, dense, kind, mask) == pytest.approx(float(output_loss(small, dense, kind, mask)))
    assert hidden_loss(spoiled, dense, mask) == pytest.approx(float(hidden_loss(small, dense, mask)))
