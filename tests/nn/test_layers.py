"""The factored modules: lossless at full rank, the product at any rank, and shared where they are tied."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from builders import made, two_factors
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.torch import ModuleBackend
from lowrank.core.analysis import Folds
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.spatial import SpatialFactors, spatial_directions, spatial_matrix
from lowrank.core.weight_analysis import analyze_weight
from lowrank.nn import LowRankEmbedding, LowRankLinear, LowRankStack, ObservedStack, SplitAttention
from lowrank.nn.attention import split_attention_

CONVS: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "same": {"kernel_size": (5, 3), "padding": "same", "bias": False},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("name", CONVS)
def test_convolutions(kind: type[nn.Conv1d] | type[nn.Conv2d], name: str) -> None:
    settings = {k: v[-1] if kind is nn.Conv1d and isinstance(v, tuple) else v for k, v in CONVS[name].items()}
    model = nn.Sequential(kind(8, 12, **settings)).double().eval()
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    (w,) = backend.weights
    x = torch.randn(2, 8, *(11, 9)[: 1 if kind is nn.Conv1d else 2], dtype=torch.float64)
    matrix = backend.read(w.name)
    with torch.no_grad():
        small = backend.rewrite({w.name: two_factors(matrix, w.full_rank)}).module
        assert torch.allclose(small(x), model(x), atol=1e-10)
        low = backend.rewrite({w.name: two_factors(matrix, 2)}).module
        product = copy.deepcopy(model)
        product[0].weight.copy_(low[0].weight)
        assert torch.allclose(low(x), product(x), atol=1e-10)
        if w.spatial is not None:
            found = spatial_directions(w, matrix, None).truncate(spatial_matrix(w, matrix), 24)
            both = backend.rewrite({w.name: Replacement("spatial", SpatialFactors(found.left, found.right))}).module
            assert torch.allclose(both(x), model(x), atol=1e-10)
            fewer = spatial_directions(w, matrix, None).truncate(spatial_matrix(w, matrix), 3)
            both = backend.rewrite({w.name: Replacement("spatial", SpatialFactors(fewer.left, fewer.right))}).module
            product[0].weight.copy_(both[0].weight)
            assert torch.allclose(both(x), product(x), atol=1e-10)


@pytest.mark.parametrize("name", ["3x3", "groups", "same", "circular"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_moments_of_convolutions_are_the_error(name: str, side: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, **CONVS[name])).double().eval()
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    (w,) = backend.weights
    x = np.random.default_rng(0).standard_normal((3, 8, 11, 9))
    inputs = (lowrank.backends.inputs.Input("input", "float64", ("batch", 8, 11, 9)),)
    backend = backend.fed_with(lowrank.backends.inputs.Signature(inputs, positional=1))
    grams: list[Gram] = []
    with backend.watching({w.name: side}) as run:  # type: ignore[dict-item]
        run({"input": x}, lambda _, gram: grams.append(made(gram)))
    matrix = backend.read(w.name)
    chosen = directions(matrix, grams[0])
    bias = 0 if model[0].bias is None else model[0].bias.detach().numpy()[:, None, None]
    dense = backend.run({"input": x})
    small = backend.rewrite({w.name: Replacement("two_factor", chosen.truncate(matrix, 3))}).run({"input": x})
    energies = chosen.energies if chosen.energies.ndim == 1 else chosen.energies.sum(0)
    lost = np.square(small - dense).sum() / np.square(dense - bias).sum()
    assert lost == pytest.approx(energies[3:].sum() / energies.sum(), rel=1e-4)
    if side == "input" and w.spatial is not None:
        record = analyze_weight(w, matrix, Folds(grams[0], grams[0]))
        assert "spatial" in record.curves
        found = spatial_directions(w, matrix, grams[0]).truncate(spatial_matrix(w, matrix), 7)
        small = backend.rewrite({w.name: Replacement("spatial", SpatialFactors(found.left, found.right))}).run(
            {"input": x}
        )
        lost = np.square(small - dense).sum() / np.square(dense - bias).sum()
        assert lost == pytest.approx(record.curves["spatial"][7], rel=1e-4)


def test_a_table_and_its_head_share_their_factors() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    backend = open_model(Tied())
    assert isinstance(backend, ModuleBackend)
    (w,) = backend.weights
    assert (w.role, w.shape, len(w.layers)) == ("embedding", (8, 30), 2)
    small = backend.rewrite({w.name: two_factors(backend.read(w.name), 3)})
    table, head = small.module.table, small.module.head
    assert isinstance(table, LowRankEmbedding) and isinstance(head, LowRankLinear)
    assert table.left.weight is head.left.weight and table.right.weight is head.right.weight
    assert small.params == 3 * (8 + 30)
    with torch.no_grad():
        assert torch.allclose(table.weight, head.weight)
        ids = torch.arange(30)
        assert torch.allclose(small.module(ids), table.weight @ table.weight.T, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_first": True},
        {"bias": False, "batch_first": True},
        {"kdim": 12, "vdim": 20, "batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
)
@pytest.mark.parametrize("mask", ["none", "bool", "float", "heads"])
@pytest.mark.parametrize("weights", [None, True, False])
def test_attention_is_what_it_was(settings: dict[str, Any], mask: str, weights: bool | None) -> None:
    dense = nn.MultiheadAttention(16, 4, **settings).eval()
    split = SplitAttention(dense)
    first = settings.get("batch_first", False)
    shape = (3, 5) if first else (5, 3)
    q = torch.randn(*shape, 16)
    k, v = torch.randn(*shape, settings.get("kdim", 16)), torch.randn(*shape, settings.get("vdim", 16))
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    masks = {
        "none": None,
        "bool": torch.ones(5, 5).triu(1).bool(),
        "float": torch.randn(5, 5),
        "heads": torch.randn(12, 5, 5),
    }
    options: dict[str, Any] = {"attn_mask": masks[mask], "key_padding_mask": padding if mask == "bool" else None}
    options |= {"need_weights": weights is not None, "average_attn_weights": bool(weights)}
    with torch.no_grad():
        (a, p), (b, r) = dense(q, k, v, **options), split(q, k, v, **options)
        assert torch.allclose(a, b, atol=1e-6)
        assert (p is None) == (r is None) and (p is None or torch.allclose(p, r, atol=1e-6))  # type: ignore[arg-type]
        if mask == "none":
            one = (q[0], k[0], v[0])
            assert torch.allclose(dense(*one)[0], split(*one)[0], atol=1e-6)


def test_stacks_of_layers_are_what_they_were() -> None:
    whole = nn.Transformer(16, 4, 1, 1, 32, batch_first=True).eval()
    split = copy.deepcopy(whole)
    assert len(split_attention_(split)) == 3
    x, y = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        for settings in ({}, {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}):
            assert torch.allclose(whole(x, y, **settings), split(x, y, **settings), atol=1e-5)


def test_experts_multiply_by_their_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = LowRankStack(4, 6, 8, 3)
    nn.init.normal_(stack.left)
    nn.init.normal_(stack.right)
    dense, x, ids = stack.weight.detach(), torch.randn(5, 8), torch.tensor([0, 3, 3, 1, 2])
    monkeypatch.setattr(lowrank.nn.experts.Factored, "materialize", lambda self: pytest.fail("the product was formed"))
    with torch.no_grad():
        assert torch.allclose(nn.functional.linear(x, stack[2]), x @ dense[2].T, atol=1e-5)
        assert torch.allclose(x @ stack[2].transpose(0, 1), x @ dense[2].T, atol=1e-5)
        assert torch.allclose(
            torch.bmm(stack[ids], x[..., None])[..., 0], (dense[ids] @ x[..., None])[..., 0], atol=1e-5
        )
        wide = torch.randn(4, 2, 6)
        assert torch.allclose(torch.bmm(wide, stack), wide @ dense, atol=1e-5)
        assert stack.shape == (4, 6, 8) and stack.dtype == torch.float32


def test_a_watched_stack_tells_what_meets_it() -> None:
    seen: list[tuple[int | None, tuple[int, ...], str]] = []
    stack = ObservedStack(torch.randn(4, 6, 8), lambda i, rows, side: seen.append((i, tuple(rows.shape), side)))
    with torch.no_grad():
        nn.functional.linear(torch.randn(5, 8), stack[1])
        torch.randn(5, 6) @ stack[2]
        torch.bmm(torch.randn(4, 3, 6), stack)
    assert seen == [(1, (5, 8), "cols"), (2, (5, 6), "rows"), (None, (4, 3, 6), "rows")]
