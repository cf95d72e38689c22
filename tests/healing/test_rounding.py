"""Training with rounding: the model only ever has numbers that its file can hold, and the file has the very same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build
from builders import two_factors, write_text
from safetensors.torch import load_file
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.core.rounding.codes import Codes
from lowrank.core.rounding.formats import FORMATS, Format
from lowrank.core.rounding.grid import codes_on_grid
from lowrank.edge import quantize
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Dtype, Target
from lowrank.healing import rounding
from lowrank.healing.rounding import RoundedOptimizer, formats_in, round_


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every weight that is rounded for a file, whether it was in its format already."""
    seen: list[bool] = []

    def spy(matrix: Any, form: Format) -> Codes | None:
        codes = codes_on_grid(matrix, form)
        seen.append(codes is not None)
        return codes

    monkeypatch.setattr(quantize, "codes_on_grid", spy)
    for module in (quantize, rounding):
        monkeypatch.setattr(module, "LEAST", 100)
    return seen


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_model_never_sees_other_numbers_than_rounded_ones(name: str) -> None:
    torch.manual_seed(0)
    form, layer, wanted = FORMATS[name], nn.Linear(32, 8), nn.Linear(32, 8)
    inputs = torch.randn(64, 32)

    def loss() -> torch.Tensor:
        return (layer(inputs) - wanted(inputs)).square().mean()

    def on_grid() -> bool:
        return codes_on_grid(layer.weight.detach().double().numpy(), form) is not None

    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(form.codes(layer.weight.detach().double().numpy()).matrix()))
    before, bias = float(loss().detach()), layer.bias.detach().clone()
    optimizer = RoundedOptimizer(dict(layer.named_parameters()), 0.05, None, {"weight": form})
    for step in range(100):
        loss().backward()
        optimizer.step(step / 100)
        assert on_grid()
    assert float(loss().detach()) < 0.2 * before and not torch.equal(layer.bias, bias)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_is_rounded_is_written_as_it_is(name: str, dtype: Dtype, found: list[bool], tmp_path: Path) -> None:
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    wanted = [w for w in dense.weights if w.role == "projection" and w.is_linear]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 12) for w in wanted[::2]})
    feeds = [dense.signature.example(4, 9, seed) for seed in range(3)]
    formats = formats_in(small.module, lambda _: FORMATS[dtype])
    before = {key: value.clone() for key, value in small.module.state_dict().items()}
    round_(small.module, dense.signature, formats, feeds)
    changed = {key for key, value in small.module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= formats.keys()
    make_graph(small, tmp_path / "model.onnx", Target(dtype=dtype), feeds)
    assert found and all(found)


def test_numbers_of_sixteen_bits_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).bfloat16(), nn.Linear(4, 4))
    assert list(formats_in(module, lambda _: FORMATS["int8"])) == ["0.weight"]


def test_blocks_are_refined_in_the_format_of_the_file(found: list[bool], bert_folder: Path, tmp_path: Path) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)))
    run, target = tmp_path / "run", Target(dtype="int8")
    report = lowrank.compress(str(bert_folder), 0.5, output=run, settings=settings, target=target, latency=False)
    assert report.refinement is not None and found and all(found)
    state = load_file(run / "model" / "model.safetensors")
    matrices = [name for name, numbers in state.items() if numbers.dim() == 2 and ".layer." in name]
    assert matrices
    for name in matrices:
        assert codes_on_grid(state[name].double().numpy().astype(np.float64), FORMATS["int8"]) is not None
