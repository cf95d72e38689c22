"""The loss of healing is the measure by which ranks are chosen: in torch and in numpy the same numbers."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from builders import tiny_transformer
from hypothesis import given
from hypothesis import strategies as st

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch.module import ModuleBackend
from lowrank.core.distance import OutputKind, Reference
from lowrank.healing.distill import Distillation, Samples
from lowrank.healing.loss import hidden_loss, output_loss
from lowrank.healing.module_runner import ModuleRunner

KINDS: list[OutputKind] = ["logits", "embedding", "values"]


def mean_loss(small: list, dense: list, kind: OutputKind, counted: list | None = None, spread: float = 1.0) -> float:
    """Over the rows of all batches."""
    masks = [None if mask is None else torch.from_numpy(mask) for mask in counted or [None] * len(dense)]
    parts = [
        output_loss(torch.from_numpy(a), torch.from_numpy(b), kind, mask, spread)
        for a, b, mask in zip(small, dense, masks, strict=True)
    ]
    return float(sum(total for total, _ in parts)) / max(sum(rows for _, rows in parts), 1)


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(2, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 9)),
        st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(1, 3), st.integers(2, 3)),
    ),
    scale=st.floats(0.05, 30.0),
    apart=st.floats(0.01, 2.0),
)
def test_torch_and_numpy_measure_the_same(
    seed: int, kind: OutputKind, shape: tuple[int, ...], scale: float, apart: float
) -> None:
    rng = np.random.default_rng(seed)
    dense = [(scale * rng.standard_normal((rows, *shape[1:]))).astype(np.float32) for rows in (shape[0], 2)]
    small = [(y + scale * apart * rng.standard_normal(y.shape)).astype(np.float32) for y in dense]
    reference = Reference(dense, kind)
    loss = mean_loss(small, dense, kind, spread=reference.spread)
    assert loss == pytest.approx(reference.loss(small), rel=1e-3, abs=1e-6)


@given(st.integers(0, 2**31), st.sampled_from(KINDS))
def test_torch_and_numpy_count_the_same_positions(seed: int, kind: OutputKind) -> None:
    rng = np.random.default_rng(seed)
    dense, small = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    mask = np.arange(6) < rng.integers(1, 7, 4)[:, None]
    reference = Reference([dense], kind, [mask])
    loss = mean_loss([small], [dense], kind, [mask], reference.spread)
    assert loss == pytest.approx(reference.loss([small]), rel=1e-3, abs=1e-6)


def test_classes_without_probability_have_no_loss_and_no_gradient() -> None:
    dense = torch.tensor([[0.0, 1.0, -torch.inf]])
    small = torch.tensor([[0.5, 0.0, -torch.inf]], requires_grad=True)
    loss, _ = output_loss(small, dense, "logits")
    assert loss.item() == pytest.approx(Reference([dense.numpy()], "logits").loss([small.detach().numpy()]))
    loss.backward()
    assert small.grad is not None and torch.isfinite(small.grad).all()


def test_outputs_in_bfloat16_are_judged_as_others() -> None:
    """As they are on a GPU, where matrices are multiplied in bfloat16."""
    torch.manual_seed(0)
    dense = open_model(tiny_transformer("bert"))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    feeds = [dense.signature.example(2, 6)]
    plain, rounded = (ModuleRunner(m, dense.signature, []) for m in (dense.module, deepcopy(dense.module).bfloat16()))
    samples = Samples(feeds, feeds)
    before = [Distillation(teacher, plain, samples, {}).before for teacher in (plain, rounded)]
    assert before[0] == 0 < before[1] < 0.01


def test_masked_tokens_do_not_count() -> None:
    small, dense = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]) == 1
    spoiled = torch.where(mask[:, :, None], small, 1e6)
    for kind in KINDS:
        ours, rows = output_loss(spoiled, dense, kind, mask)
        assert rows == (2 if kind == "embedding" else 3)
        assert ours == pytest.approx(float(output_loss(small, dense, kind, mask)[0]))
    assert hidden_loss(spoiled, dense, mask) == pytest.approx(float(hidden_loss(small, dense, mask)))
