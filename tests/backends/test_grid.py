"""The grid: every layer type x dtype x bias x rank regime, through the backend, against the prediction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import decaying, two_factors
from torch import nn

from lowrank.backends.torch import ModuleBackend, open_module
from lowrank.core.truncation.spectrum import Spectrum

ROWS, COLS = 24, 16


def linear(bias: bool) -> nn.Module:
    layer = nn.Linear(COLS, ROWS, bias=bias)
    layer.weight.data = torch.from_numpy(decaying(ROWS, COLS)).float()
    return layer


def conv1d(bias: bool) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(ROWS, COLS)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(decaying(ROWS, COLS).T)).float()
    nn.init.normal_(layer.bias) if bias else nn.init.zeros_(layer.bias)
    return layer


LAYERS: list[Callable[[bool], nn.Module]] = [linear, conv1d]
REGIMES = {"full": min(ROWS, COLS), "break-even": (ROWS * COLS - 1) // (ROWS + COLS), "one": 1}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_layer(layer: Callable[[bool], nn.Module], bias: bool, dtype: torch.dtype, regime: str) -> None:
    model = nn.ModuleDict({"inner": layer(bias)}).to(dtype).eval()
    backend = open_module(model)
    assert isinstance(backend, ModuleBackend)
    (weight,) = backend.weights
    assert weight.shape == (ROWS, COLS)
    matrix, rank = backend.read(weight.name), REGIMES[regime]
    small = backend.rewrite({weight.name: two_factors(matrix, rank)})
    new = small.module.get_submodule("inner")
    x = torch.eye(COLS, dtype=dtype)
    with torch.no_grad():
        dense, factored = model["inner"](x).double(), new(x).double()
    lost = float((dense - factored).norm() / (torch.from_numpy(matrix)).norm())
    predicted = Spectrum(np.linalg.svd(matrix, compute_uv=False)).relative_error(rank)
    assert lost == pytest.approx(predicted, abs=TOLERANCES[dtype])
    assert new.left.weight.dtype == dtype
    assert model["inner"].weight.shape in {(ROWS, COLS), (COLS, ROWS)}, "the original is unchanged"
