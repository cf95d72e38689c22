"""Training with rounding: the model only ever has numbers that its file can hold, and the file has the very same."""

from __future__ import annotations

from dataclasses import replace
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
from lowrank.backends.inputs import Input, Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.core.plan import stored_weights
from lowrank.core.rounding.codes import Codes
from lowrank.core.rounding.formats import FORMATS, Format, stored_as
from lowrank.core.rounding.grid import codes_on_grid
from lowrank.edge import quantize
from lowrank.edge.graph_file import make_graph
from lowrank.edge.target import Dtype, Target
from lowrank.healing import rounding
from lowrank.healing.module_runner import block_paths
from lowrank.healing.rounding import RoundedOptimizer, formats_in, round_
from lowrank.nn import LowRankLinear


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
@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_what_is_rounded_is_written_as_it_is(name: str, dtype: Dtype, found: list[bool], tmp_path: Path) -> None:
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    wanted = [w for w in dense.weights if w.role == "projection" and w.is_linear]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 12) for w in wanted[::2]})
    feeds = [dense.signature.example(4, 9, seed) for seed in range(3)]
    blocks = block_paths(small.module, dense.signature, feeds[0])
    formats = formats_in(small.module, blocks, lambda _: FORMATS[dtype])
    before = {key: value.clone() for key, value in small.module.state_dict().items()}
    round_(small.module, dense.signature, formats, feeds)
    changed = {key for key, value in small.module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= formats.keys()
    make_graph(small, tmp_path / "model.onnx", Target(dtype=dtype), feeds)
    # Tables are not rounded before.
    assert sum(found) >= len(formats) and len(found) - sum(found) <= 4


def test_numbers_of_sixteen_bits_are_left_alone() -> None:
    block = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).bfloat16(), nn.Linear(4, 4))
    module = nn.Sequential(block, nn.Linear(64, 64))
    assert list(formats_in(module, ["0"], lambda _: FORMATS["int8"])) == ["0.0.weight"]


def test_a_factor_that_layers_share_is_rounded_once() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = LowRankLinear(64, 64, 20), LowRankLinear(64, 64, 20)
            self.key.right.weight = self.query.right.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query(x) + self.key(x)

    torch.manual_seed(0)
    block = Block()
    module, x = nn.Sequential(block), np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)
    before = module(torch.from_numpy(x)).detach()
    formats = formats_in(module, ["0"], lambda _: FORMATS["int8"])
    assert formats.keys() == {"0.query.right.weight", "0.query.left.weight", "0.key.left.weight"}
    round_(module, Signature((Input("x", "float32", ("batch", 64)),), positional=1), formats, [{"x": x}])
    assert block.key.right.weight is block.query.right.weight
    for name in formats:
        assert codes_on_grid(module.get_parameter(name).detach().double().numpy(), FORMATS["int8"]) is not None
    after = module(torch.from_numpy(x)).detach()
    assert 0 < float((after - before).norm() / before.norm()) < 0.03


def test_layers_that_read_nothing_are_rounded_to_the_nearest() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.unseen = nn.Linear(64, 64), LowRankLinear(64, 64, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.seen(x).sum() + self.unseen(x[:0]).sum()

    torch.manual_seed(0)
    module = nn.Sequential(Experts())
    signature = Signature((Input("x", "float32", ("batch", 64)),), positional=1)
    feeds = [{"x": np.full((3, 64), np.nan, np.float32)}, {"x": np.ones((3, 64), np.float32)}]
    formats = formats_in(module, ["0"], lambda _: FORMATS["int8"])
    round_(module, signature, formats, feeds)
    assert len(formats) == 3
    for name in formats:
        numbers = module.get_parameter(name).detach().double().numpy()
        assert np.isfinite(numbers).all() and codes_on_grid(numbers, FORMATS["int8"]) is not None


@pytest.mark.slow
def test_where_blocks_cannot_be_trained_numbers_stay_exact(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)))
    run, options = tmp_path / "run", {"target": Target(dtype="int8"), "latency": False, "settings": settings}
    lowrank.compress(str(bert_folder), 0.5, output=run, refine=False, **options)
    plain = load_file(run / "model" / "model.safetensors")

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no gradient")

    monkeypatch.setattr("lowrank.healing.blocks.BlockFit._backward", refuse)
    report = lowrank.compress(str(bert_folder), 0.5, output=run, **options)
    assert report.refinement is None and any("cannot be trained (no gradient)" in note for note in report.notes)
    after = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(after[name], plain[name]) for name in plain)


def test_a_tied_table_is_stored_as_it_was_planned_whatever_a_graph_calls_it() -> None:
    dense = open_model(build("gpt2"))
    assert isinstance(dense, ModuleBackend)
    (table,) = (w for w in dense.weights if w.is_table and len(w.layers) > 1)
    analysis = lowrank.analyze(build("gpt2"), settings=lowrank.Settings(calib="none", targets=("embeddings",)))
    plan = lowrank.select(analysis, 1.0)
    options = tuple(replace(o, dtype="int4") if o.group == table.name else o for o in plan.options)
    stored = stored_weights(replace(plan, options=options), analysis)
    assert {stored_as(f"{layer.name}.weight", stored).dtype for layer in table.layers} == {"int4"}


def test_blocks_are_refined_in_the_format_of_the_file(found: list[bool], bert_folder: Path, tmp_path: Path) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)))
    run, target = tmp_path / "run", Target(dtype="int8")
    report = lowrank.compress(str(bert_folder), 0.5, output=run, settings=settings, target=target, latency=False)
    assert report.refinement is not None
    state = load_file(run / "model" / "model.safetensors")
    matrices = [name for name, numbers in state.items() if numbers.dim() == 2 and ".layer." in name]
    assert matrices and sum(found) >= len(matrices)
    for name in matrices:
        assert codes_on_grid(state[name].double().numpy(), FORMATS["int8"]) is not None
