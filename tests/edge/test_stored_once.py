"""What is stored once is written once: in every type and profile a graph holds as many numbers as the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import DECODER, TEXT, transformers_model
from builders import shape_spectra_, two_factors
from onnx import numpy_helper
from torch import nn

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import of_arrays
from lowrank.backends.onnx.save import file_size
from lowrank.backends.ort_session import typed
from lowrank.backends.torch import ModuleBackend
from lowrank.edge import quantize
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Target
from lowrank.evaluate.graph import open_graph
from lowrank.evaluate.parity import check_parity

WIDTH, TIMES = 32, 5
TARGETS = {
    "float32": Target(),
    "fused": Target(profile="ort"),
    "float16": Target(dtype="float16"),
    "int8": Target(dtype="int8"),
    "int4": Target(dtype="int4"),
    "int3": Target(dtype="int3"),
    "nbits4": Target(dtype="nbits4", profile="ort"),
}
TOLERANCE = {"float32": 1e-4, "fused": 1e-4, "float16": 2e-3, "int8": 5e-2, "int4": 0.4, "int3": 0.6, "nbits4": 0.4}


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "LEAST", 100)
    monkeypatch.setattr("lowrank.edge.half.LEAST", 100)


class Block(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x + self.mix(x)))))


class Loop(nn.Module):
    """One block that is applied several times, as in a Universal Transformer."""

    def __init__(self, times: int = TIMES, width: int = WIDTH) -> None:
        super().__init__()
        self.layers, self.times, self.width = nn.ModuleList([Block(width)]), times, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.layers[0](x)
        return x


class Listed(nn.Module):
    """One block under several names."""

    def __init__(self, times: int = TIMES) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()] * times)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TiedBlocks(nn.Module):
    """Blocks with norms and biases of their own, and matrices that they have together."""

    def __init__(self, times: int = TIMES) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(times))
        for layer in self.layers[1:]:
            for name in ("mix", "up", "down"):
                layer.get_submodule(name).weight = self.layers[0].get_submodule(name).weight

    forward = Listed.forward


class SharedExpert(nn.Module):
    """Layers with an expert of their own each, and one that all of them share."""

    def __init__(self, times: int = TIMES) -> None:
        super().__init__()
        shared = Block()
        self.own, self.shared = nn.ModuleList(Block() for _ in range(2)), nn.ModuleList([shared] * 2)
        self.gates, self.times = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2)), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for own, shared, gate in zip(self.own, self.shared, self.gates, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * own(x) + (1 - share) * shared(x)
        return x


def albert(times: int = TIMES) -> nn.Module:
    return transformers_model(
        "AlbertForMaskedLM", "AlbertConfig", **{**TEXT, "num_hidden_layers": times}, embedding_size=16
    )()


def tied_decoder(times: int = 1) -> nn.Module:
    return transformers_model("LlamaForCausalLM", "LlamaConfig", **DECODER, tie_word_embeddings=True)()


MODELS: dict[str, Callable[..., nn.Module]] = {
    "albert": albert,
    "loop": Loop,
    "listed": Listed,
    "tied blocks": TiedBlocks,
    "shared expert": SharedExpert,
    "tied head": tied_decoder,
}


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        # Norms that are all alike would be joined, too.
        parameter.data += 0.1 * torch.randn_like(parameter) if parameter.dim() == 1 else 0.0
    return shape_spectra_(module.eval())


def some(*quick: str, of: Sequence[str] = tuple(MODELS)) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in of]


def opened(module: nn.Module) -> ModuleBackend:
    backend = open_model(trained(module))
    assert isinstance(backend, ModuleBackend)
    if not hasattr(module, "config"):
        values = {"x": np.random.default_rng(0).normal(size=(2, 7, getattr(module, "width", WIDTH))).astype(np.float32)}
        backend = backend.fed_with(of_arrays(values), values)
    return backend


def factored(backend: ModuleBackend, roles: tuple[str, ...] = ("projection",), rank: int = 10) -> ModuleBackend:
    names = [w.name for w in backend.weights if w.role in roles]
    return backend.rewrite({name: two_factors(backend.read(name), rank) for name in names})


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def stored_bytes(path: Path) -> int:
    return sum(len(each.raw_data) or numpy_helper.to_array(each).nbytes for each in onnx.load(path).graph.initializer)


def copies(path: Path) -> list[str]:
    """Tensors that are in a file already; matrices also turned."""
    seen, found = set[tuple[object, ...]](), list[str]()
    for name, array in tensors_of(path).items():
        ways = [array, array.T] if array.ndim == 2 and array.size >= 256 else [array]
        keys = {(way.dtype.str, way.shape, way.tobytes()) for way in ways}
        found += [name] if keys & seen else []
        seen |= keys
    return found


def difference(path: Path, backend: ModuleBackend) -> float:
    assert not isinstance(backend.signature, str)
    feed, session = backend.signature.example(2, 7), open_graph(path)
    outputs = zip(
        session.run(list(backend.outputs(feed)), typed(session, feed)), backend.outputs(feed).values(), strict=True
    )
    return max(float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)) for theirs, ours in outputs)


@pytest.mark.parametrize("name", some("loop"))
def test_a_graph_holds_no_number_twice_in_any_type(name: str, tmp_path: Path) -> None:
    small = factored(opened(MODELS[name]()))
    plain = tmp_path / "plain.onnx"
    small.write_onnx(plain)
    check_parity(small, plain)
    # What a graph has beside the model are constants of shapes; positions that are counted it does not have.
    assert stored_bytes(plain) == pytest.approx(small.nbytes, rel=0.05)
    assert not isinstance(small.signature, str)
    feeds = [small.signature.example(2, 7), small.signature.example(1, 5)]
    for label, target in TARGETS.items():
        path = tmp_path / f"{label}.onnx"
        shutil.copyfile(plain, path)
        fit_file(path, target, small.signature, feeds)
        assert copies(path) == [], label
        assert difference(path, small) < TOLERANCE[label], label


@pytest.mark.parametrize("name", some("loop", of=["albert", "loop", "listed"]))
def test_a_layer_that_is_applied_again_adds_no_number(name: str, tmp_path: Path) -> None:
    sizes = dict[int, list[int]]()
    for times in (1, 3):
        small = factored(opened(MODELS[name](times)))
        assert not isinstance(small.signature, str)
        small.write_onnx(tmp_path / "plain.onnx")
        for target in TARGETS.values():
            shutil.copyfile(tmp_path / "plain.onnx", tmp_path / "m.onnx")
            fit_file(tmp_path / "m.onnx", target, small.signature, [small.signature.example(2, 7)])
            sizes.setdefault(times, []).append(stored_bytes(tmp_path / "m.onnx"))
    assert sizes[3] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.slow
def test_a_graph_with_a_cache_holds_a_tied_head_once(tmp_path: Path) -> None:
    small = factored(opened(tied_decoder()), ("projection", "embedding"))
    small.write_onnx(tmp_path / "m.onnx")
    small.write_with_past(tmp_path / "past.onnx")
    for name in ("m.onnx", "past.onnx"):
        assert copies(tmp_path / name) == []
        assert stored_bytes(tmp_path / name) == pytest.approx(small.nbytes, rel=0.05)


@pytest.mark.parametrize("name", some("loop", of=["albert", "loop", "tied blocks"]))
def test_copies_in_a_graph_of_others_are_one_weight(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = opened(MODELS[name]())
    with monkeypatch.context() as patch:
        # As other exporters write it: with a copy for each time that a layer is applied.
        patch.setattr("lowrank.backends.torch.export.AFTER_TRACE", ())
        dense.write_onnx(tmp_path / "copies.onnx")
    assert copies(tmp_path / "copies.onnx")
    graph: Any = open_model(tmp_path / "copies.onnx")
    ours = [w for w in dense.weights if w.role == "projection"]
    theirs = [w for w in graph.weights if w.role == "projection"]
    assert sorted(w.params for w in theirs) == sorted(w.params for w in ours)
    assert {w.products for w in theirs} == {w.products for w in ours} == {TIMES}
    small = graph.rewrite({w.name: two_factors(graph.read(w.name), 10) for w in theirs})
    small.write_onnx(tmp_path / "small.onnx")
    assert copies(tmp_path / "small.onnx") == []
    same = factored(dense)
    assert difference(tmp_path / "small.onnx", same) < 1e-4
    assert stored_bytes(tmp_path / "small.onnx") == pytest.approx(same.nbytes, rel=0.05)


def test_a_transpose_of_a_stored_matrix_is_computed(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    from onnx_builders import init, model, node

    nodes = [
        node("Gather", ["table", "x"], "rows"),
        node("MatMul", ["rows", "head"], "a"),
        node("MatMul", ["rows", "again"], "b"),
    ]
    nodes.append(node("Add", ["a", "b"], "y"))
    tensors = [init(table, "table"), init(table.T, "head"), init(table.T, "again")]
    onnx.save(model(nodes, tensors, ("batch", "sequence"), kind=onnx.TensorProto.INT64), tmp_path / "m.onnx")
    from lowrank.backends.onnx.passes.store_once import store_once
    from lowrank.backends.onnx.save import load_whole, save_model

    graph = load_whole(tmp_path / "m.onnx")
    store_once(graph)
    save_model(graph, tmp_path / "once.onnx")
    assert list(tensors_of(tmp_path / "once.onnx")) == ["table"]
    assert [n.op_type for n in onnx.load(tmp_path / "once.onnx").graph.node].count("Transpose") == 1
    feed = {"x": np.arange(12).reshape(2, 6)}
    before, after = (open_graph(tmp_path / name).run(None, feed)[0] for name in ("m.onnx", "once.onnx"))
    np.testing.assert_allclose(before, after, rtol=1e-5)


@pytest.mark.parametrize("name", some("loop"))
def test_the_bytes_of_the_report_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    module = trained(MODELS[name]())
    calib = tmp_path / "x.npz"
    np.savez(calib, x=np.random.default_rng(0).normal(size=(24, 7, WIDTH)).astype(np.float32))
    plain = not hasattr(module, "config")
    settings = lowrank.Settings(**({"calib": str(calib)} if plain else {}))
    report = lowrank.compress(module, 0.6, output=tmp_path / "run", settings=settings, latency=False)
    assert not report.problems
    assert stored_bytes(tmp_path / "run" / "model.onnx") == pytest.approx(report.model.bytes_after, rel=0.05)
    torch_file = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(torch_file[:8], "little")
    assert len(torch_file) - header == pytest.approx(report.model.bytes_after, rel=0.05)


def test_a_file_is_a_tenth_larger_than_its_numbers_at_most(tmp_path: Path) -> None:
    small = factored(opened(Loop(width=192)), rank=64)
    small.write_onnx(tmp_path / "m.onnx")
    assert small.nbytes < file_size(tmp_path / "m.onnx") < 1.1 * small.nbytes


@pytest.mark.parametrize("name", MODELS)
def test_products_are_counted_as_often_as_they_are_made(name: str) -> None:
    backend = opened(MODELS[name]())
    counted = {weight.name: weight.products for weight in backend.weights if weight.role == "projection"}
    if name == "shared expert":
        assert {n.split(".")[0]: c for n, c in counted.items()} == {"own": 1, "shared": 2}
    else:
        assert set(counted.values()) == {1 if name == "tied head" else TIMES}
    if name == "tied head":
        table = next(weight for weight in backend.weights if weight.is_table)
        assert (table.lookups, table.products) == (1, 1)


def test_a_name_that_is_never_called_and_an_expert_without_tokens_count_as_they_should() -> None:
    class Aliased(Loop):
        def __init__(self) -> None:
            super().__init__(3)
            self.again, self.idle = self.layers[0], Block()

    layers = {w.name: [layer.applied for layer in w.layers] for w in opened(Aliased()).weights}
    assert layers["layers.0.mix.weight"] == [2, 1]
    assert layers["idle.mix.weight"] == [1]
