"""Training with rounding: the model only ever has numbers that its file can hold, and the file has the very same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import build
from builders import two_factors, write_text
from safetensors.torch import load_file
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Feed, Input, Signature
from lowrank.backends.torch import ModuleBackend
from lowrank.backends.torch.inputs import as_tensors, call
from lowrank.core.plan import stored_weights
from lowrank.core.rounding.codes import Codes
from lowrank.core.rounding.formats import FORMATS, Format, stored_as
from lowrank.core.rounding.grid import codes_on_grid
from lowrank.edge import quantize
from lowrank.edge.graph_file import make_graph
from lowrank.edge.integer import weights_in_bits
from lowrank.edge.target import Dtype, Profile, Target
from lowrank.healing import grids as grids_module
from lowrank.healing.grids import Grid, grids_in
from lowrank.healing.module_runner import block_paths
from lowrank.healing.rounding import round_
from lowrank.healing.straight_through import RoundedOptimizer, rounded_input, rounded_inputs
from lowrank.healing.training import Training
from lowrank.nn import LowRankEmbedding, LowRankLinear
from lowrank.pipeline.in_bits import grids_of_file


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every weight that is rounded for a file, whether it was in its format already."""
    seen: list[bool] = []

    def spy(matrix: Any, form: Format) -> Codes | None:
        codes = codes_on_grid(matrix, form)
        seen.append(codes is not None)
        return codes

    monkeypatch.setattr(quantize, "codes_on_grid", spy)
    for module in (quantize, grids_module):
        monkeypatch.setattr(module, "LEAST", 100)
    return seen


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "int2"])
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
    optimizer = RoundedOptimizer(dict(layer.named_parameters()), 0.05, None, {"weight": Grid(form)})
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
    grids = grids_in(small.module, lambda _: FORMATS[dtype], blocks)
    before = {key: value.clone() for key, value in small.module.state_dict().items()}
    round_(small.module, dense.signature, grids, feeds)
    changed = {key for key, value in small.module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= grids.keys()
    make_graph(small, tmp_path / "model.onnx", Target(dtype=dtype), feeds)
    # Tables are not rounded before.
    assert sum(found) >= len(grids) and len(found) - sum(found) <= 4


@pytest.mark.parametrize(
    ("name", "dtype", "profile"),
    [
        ("bert", "int8", "portable"),
        ("bert", "int8", "qdq"),
        ("bert", "int4", "portable"),
        pytest.param("gpt2", "int4", "qdq-signed", marks=pytest.mark.slow),
        # Where an engine's attention differs in the last digit, a number halfway between two codes gets another one.
        pytest.param("bert", "nbits4", "ort", marks=pytest.mark.slow),
        *(
            pytest.param(n, d, "portable", marks=pytest.mark.slow)
            for n in ("gpt2", "llama", "vit")
            for d in ("int8", "int4")
        ),
        ("bert", "int3", "portable"),
        pytest.param("gpt2", "int3", "portable", marks=pytest.mark.slow),
        pytest.param("bert", "int2", "portable", marks=pytest.mark.slow),
    ],
)
def test_torch_computes_in_training_what_the_file_computes(
    name: str, dtype: Dtype, profile: Profile, found: list[bool], tmp_path: Path
) -> None:
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    wanted = [w for w in dense.weights if (w.is_linear or w.is_table) and len(w.layers) == 1 and min(w.shape) > 20]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 16) for w in wanted[::2]})
    feeds = [dense.signature.example(12 if "qdq" in profile else 4, 9, seed) for seed in range(3)]
    target, path = Target(dtype=dtype, profile=profile), tmp_path / "model.onnx"
    make_graph(small, path, target, feeds)
    names = weights_in_bits(path)
    grids = grids_in(small.module, lambda name: FORMATS[dtype] if name in names else None)
    # A head that is tied to a table has one name, and the file may know the other.
    assert names.keys() - grids.keys() <= {"lm_head.weight"} and len(grids) > 5
    round_(small.module, dense.signature, grids, feeds)
    found.clear()
    make_graph(small, path, target, feeds)
    assert all(found)
    own = dict(small.module.named_parameters(remove_duplicate=False))
    reads = {own[key]: read for key, read in weights_in_bits(path).items() if read is not None}
    grids = {key: replace(grid, read=reads.get(own[key])) for key, grid in grids.items()}
    session = onnxruntime.InferenceSession(path)
    for feed in feeds:
        given = {each.name: feed[each.name] for each in session.get_inputs()}
        graph = dict(zip((each.name for each in session.get_outputs()), session.run(None, given), strict=True))
        exact, rounded = _outputs(small, feed), {}
        with rounded_inputs(small.module, grids):
            rounded = _outputs(small, feed)
        for output in dense.signature.compared:
            size = np.linalg.norm(graph[output.name])
            apart = np.linalg.norm(rounded[output.name] - graph[output.name]) / size
            assert apart < 1e-3 and apart < 0.2 * np.linalg.norm(exact[output.name] - graph[output.name]) / size
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in small.module.modules())


def _outputs(small: Any, feed: Feed) -> dict[str, np.ndarray]:
    with torch.no_grad():
        made = call(small.signature, small.module, as_tensors(small.signature, feed))
    return {name: value.numpy() for name, value in made.items()}


@pytest.mark.slow
def test_a_fused_projection_that_stays_dense_is_trained_as_the_file_has_it(found: list[bool], tmp_path: Path) -> None:
    dense = open_model(build("gpt2"))
    assert isinstance(dense, ModuleBackend) and isinstance(dense.signature, Signature)
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), 16) for w in dense.weights if "c_fc" in w.name})
    feeds, path = [dense.signature.example(4, 9, seed) for seed in range(3)], tmp_path / "model.onnx"
    make_graph(small, path, Target(dtype="int8"), feeds)
    analysis = lowrank.analyze(build("gpt2"), settings=lowrank.Settings(calib="none"))
    grids, remarks = grids_of_file(path, small, "int8", lowrank.select(analysis, 1.0), analysis)
    assert not remarks and {n.split(".")[-2] for n in grids if "c_attn" in n} == {"query", "key", "value"}
    round_(small.module, dense.signature, grids, feeds)
    found.clear()
    make_graph(small, path, Target(dtype="int8"), feeds)
    assert all(found)
    grids, remarks = grids_of_file(tmp_path / "none.onnx", small, "int8", lowrank.select(analysis, 1.0), analysis)
    assert not grids and "cannot be read" in remarks[0]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_in_its_format_is_not_rounded_again(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(60, 32))
            self.words, self.first = nn.Embedding(60, 32), LowRankEmbedding(nn.Embedding(90, 64), 20)
            self.words.weight = self.table
            self.chain, self.last = LowRankLinear(32, 64, 40), nn.Linear(64, 48)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.last(self.chain(self.words(ids)) + self.first(ids))

    torch.manual_seed(0)
    module, feeds = Model(), [{"ids": np.arange(40).reshape(4, 10)}]
    signature = Signature((Input("ids", "int64", ("batch", "length")),), positional=1)
    grids = grids_in(module, lambda _: FORMATS[name])
    assert grids["table"].table and len(grids) == 6
    round_(module, signature, grids, feeds)
    once = {key: value.clone() for key, value in module.state_dict().items()}
    round_(module, signature, grids, feeds)
    assert all(torch.equal(value, once[key]) for key, value in module.state_dict().items())
    assert all(grid.holds(module.get_parameter(each)) for each, grid in grids.items())


def test_an_expert_that_reads_nothing_rounds_nothing() -> None:
    for form in FORMATS.values():
        assert rounded_input(torch.empty(0, 64), form).shape == (0, 64)


def test_numbers_of_sixteen_bits_are_left_alone() -> None:
    block = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).bfloat16(), nn.Linear(4, 4))
    module = nn.Sequential(block, nn.Linear(64, 64))
    assert list(grids_in(module, lambda _: FORMATS["int8"], ["0"])) == ["0.0.weight"]


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
    grids = grids_in(module, lambda _: FORMATS["int8"], ["0"])
    assert grids.keys() == {"0.query.right.weight", "0.query.left.weight", "0.key.left.weight"}
    round_(module, Signature((Input("x", "float32", ("batch", 64)),), positional=1), grids, [{"x": x}])
    assert block.key.right.weight is block.query.right.weight
    for name in grids:
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
    grids = grids_in(module, lambda _: FORMATS["int8"], ["0"])
    round_(module, signature, grids, feeds)
    assert len(grids) == 3
    for name in grids:
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


@pytest.mark.parametrize(
    ("dtype", "profile"),
    [
        ("int8", "portable"),
        pytest.param("int4", "portable", marks=pytest.mark.slow),
        pytest.param("int8", "qdq", marks=pytest.mark.slow),
    ],
)
def test_healing_trains_what_the_file_has(
    dtype: Dtype, profile: Profile, found: list[bool], bert_folder: Path, tmp_path: Path
) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)), targets=("projections", "embeddings"))
    run, target = tmp_path / "run", Target(dtype=dtype, profile=profile)
    options: dict[str, Any] = {"settings": settings, "target": target, "latency": False, "refine": False}
    lowrank.compress(str(bert_folder), 0.5, output=run, **options)
    names = weights_in_bits(run / "model.onnx")
    found.clear()
    report = lowrank.heal(run, Training(steps=40), latency=False)
    (entry,) = report.healing
    assert entry.kept and entry.after is not None and entry.before is not None and entry.after < entry.before
    # Dense tables are rounded and not trained.
    tables = [name for name in names if name.endswith("embeddings.weight")]
    assert entry.in_bits == len(names) - len(tables) and tables
    assert not any("trained in 32 bits" in note for note in report.notes)
    after = weights_in_bits(run / "model.onnx")
    assert all(found) and after.keys() == names.keys()
    # Ranges are fixed anew on what the weights have become.
    assert any(after.values()) == (profile == "qdq") and (after != names) == (profile == "qdq")
