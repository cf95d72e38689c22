"""Parity: what is a difference, and what is the rounding of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_builders import IN, init, model, node, weight
from torch import nn

from lowrank.backends import open_model
from lowrank.backends.onnx import OnnxBackend
from lowrank.errors import ExportError
from lowrank.evaluate.parity import check_parity


class Sensitive(nn.Module):
    """A large number is added and taken away again: most digits of what is left are rounding."""

    def __init__(self, large: float = 3e3) -> None:
        super().__init__()
        self.layer, self.large = nn.Linear(8, 8), large

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) + self.large) - self.large


def gemm_twice(path: Path, module: Sensitive, scale: float = 1.0, length: int | None = None) -> Path:
    """The module as a graph that takes and adds in another order."""
    numbers = {
        "w": module.layer.weight.detach().numpy().T * scale,
        "b": module.layer.bias.detach().numpy() + np.float32(module.large),
        "c": np.full(8, module.large, np.float32),
    }
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "s"), node("Sub", ["s", "c"], "y")]
    made = model(nodes, [init(np.ascontiguousarray(a), k) for k, a in numbers.items()], ("batch", 8))
    onnx.save(made, path)
    return path


@pytest.fixture
def sensitive() -> Any:
    torch.manual_seed(0)
    module = Sensitive().eval()
    backend = open_model(module)
    name = backend.signature.output  # type: ignore[union-attr]
    return module, backend, name


def renamed(path: Path, names: dict[str, str]) -> Path:
    made = onnx.load(path)
    for value in (*made.graph.input, *made.graph.output):
        value.name = names.get(value.name, value.name)
    for each in made.graph.node:
        each.input[:] = [names.get(n, n) for n in each.input]
        each.output[:] = [names.get(n, n) for n in each.output]
    onnx.save(made, path)
    return path


def test_a_difference_as_large_as_the_models_own_rounding_passes_and_is_said(sensitive: Any, tmp_path: Path) -> None:
    module, backend, name = sensitive
    feed = {"x": torch.randn(4, 8)}
    exact = module.double()(feed["x"].double()).detach()
    own = float((module.float()(feed["x"]).detach() - exact).abs().max() / exact.abs().max())
    assert own > 5e-5
    path = renamed(gemm_twice(tmp_path / "a.onnx", module), {"y": name})
    parity = check_parity(backend, path)
    assert parity.relative < 4 * 10 * own
    if parity.relative > 1e-4:
        assert parity.noise is not None and parity.relative <= 4 * parity.noise


def test_a_real_difference_is_refused_and_its_shape_alone_is_named(sensitive: Any, tmp_path: Path) -> None:
    module, backend, name = sensitive
    path = renamed(gemm_twice(tmp_path / "a.onnx", module, scale=1.1), {"y": name})
    with pytest.raises(ExportError, match=r"at batch 1; other roundings of the model itself change \d"):
        check_parity(backend, path)


def test_a_steady_model_has_no_such_excuse(tmp_path: Path) -> None:
    module = Sensitive(large=0.0).eval()
    backend = open_model(module)
    path = renamed(gemm_twice(tmp_path / "a.onnx", module, scale=1.001), {"y": backend.signature.output})  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="differs from the model"):
        check_parity(backend, path)
    good = renamed(gemm_twice(tmp_path / "b.onnx", module), {"y": backend.signature.output})  # type: ignore[union-attr]
    assert check_parity(backend, good).noise is None


def test_a_graph_with_neighbouring_numbers_differs_by_its_rounding(tmp_path: Path) -> None:
    onnx.save(model([node("MatMul", ["x", "w"], "y")], [init(weight(), "w")]), tmp_path / "m.onnx")
    backend = open_model(tmp_path / "m.onnx")
    assert isinstance(backend, OnnxBackend)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, IN)).astype(np.float32)}
    one, other = backend.reference()(feed)["y"], backend.otherwise_rounded()(feed)["y"]
    share = np.abs(one - other).max() / np.abs(one).max()
    assert 0 < share < 1e-6
