"""Rewriting, saving and loading: the original unchanged, the outputs exact, ties still tied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Blocks, saved_state, tiny_transformer, trained_blocks, two_factors
from torch import nn

import lowrank
from lowrank.backends import Opening, open_model
from lowrank.backends.torch import ModuleBackend, StateDictBackend, load
from lowrank.backends.torch.inputs import call
from lowrank.core.structures.base import Replacement
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.pivoted import pivot
from lowrank.errors import ArtifactError
from lowrank.nn import LowRankLinear


def replacements(backend: ModuleBackend | StateDictBackend, rank: int = 4) -> dict[str, Replacement]:
    wanted = [w.name for w in backend.weights if w.role == "projection"]
    return {name: two_factors(backend.read(name), rank) for name in wanted}


def test_the_original_is_unchanged() -> None:
    model = trained_blocks()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    backend = open_model(model)
    small = backend.rewrite(replacements(backend))  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert isinstance(small, ModuleBackend)
    assert isinstance(small.module.layers[0].up, LowRankLinear)
    assert isinstance(small.module.classifier, nn.Linear)


def test_huggingface_round_trip_is_exact(bert_folder: Path, tmp_path: Path) -> None:
    backend = open_model(bert_folder)
    assert isinstance(backend, ModuleBackend)
    small = backend.rewrite(replacements(backend))
    small.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, nn.Module)
    assert_same(small, loaded)
    assert {"config.json", "tokenizer.json", "model.safetensors", "lowrank.json"} <= {
        p.name for p in tmp_path.iterdir()
    }


def assert_same(small: ModuleBackend, loaded: nn.Module) -> None:
    assert not isinstance(small.signature, str)
    values = small.signature.example(2, 6, padded=True)
    with torch.no_grad():
        ours, theirs = (call(small.signature, module, values) for module in (small.module, loaded))
        assert all(torch.equal(ours[name], theirs[name]) for name in small.signature.output_names)


def test_state_dict_becomes_a_factored_state_dict(tmp_path: Path) -> None:
    backend = open_model(saved_state(tmp_path / "m.pt"))
    assert isinstance(backend, StateDictBackend)
    small = backend.rewrite(replacements(backend))
    small.save(tmp_path)
    state = load(tmp_path)
    assert isinstance(state, dict)
    assert state["layers.0.up.left.weight"].shape == (40, 4)
    assert state["layers.0.up.right.weight"].shape == (4, 16)
    assert "layers.0.up.weight" not in state and "classifier.weight" in state
    module = load(tmp_path, arch=Blocks)
    assert isinstance(module, nn.Module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_arch_round_trip_and_its_refusal(tmp_path: Path) -> None:
    backend = open_model(saved_state(tmp_path / "m.pt"), Opening(arch="builders:build_blocks"))
    assert isinstance(backend, ModuleBackend)
    small = backend.rewrite(replacements(backend))
    (tmp_path / "out").mkdir()
    small.save(tmp_path / "out")
    with pytest.raises(ArtifactError, match="pass arch="):
        load(tmp_path / "out")
    loaded = load(tmp_path / "out", arch="builders:build_blocks")
    assert isinstance(loaded, nn.Module)
    assert_same(small, loaded)


def test_program_round_trip(tmp_path: Path) -> None:
    shape = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(trained_blocks(), (torch.randn(2, 5, 16),), dynamic_shapes=(shape,))
    torch.export.save(program, tmp_path / "m.pt2")
    backend = open_model(tmp_path / "m.pt2")
    assert isinstance(backend, ModuleBackend)
    small = backend.rewrite(replacements(backend))
    (tmp_path / "out").mkdir()
    small.save(tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert isinstance(loaded, nn.Module)
    x = torch.randn(4, 7, 16)
    assert torch.allclose(small.module(x), loaded(x), atol=1e-6)


class TiedBlocks(Blocks):
    """Both blocks share the weight of their first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1].up.weight = self.layers[0].up.weight


def test_tied_weights_are_one_weight_and_stay_tied(tmp_path: Path) -> None:
    model = TiedBlocks().eval()
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    assert [len(w.layers) for w in backend.weights] == [2, 1, 1, 1]
    small = backend.rewrite(replacements(backend))
    a, b = (small.module.layers[i].up for i in (0, 1))
    assert a.left.weight is b.left.weight and a.right.weight is b.right.weight
    for i in (0, 1):
        # Each has a bias of its own, and keeps it.
        assert torch.equal(small.module.layers[i].up.bias, model.layers[i].up.bias)
    small.save(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "layers.1.up.left.weight" not in file.keys()  # noqa: SIM118
    loaded = load(tmp_path, arch=TiedBlocks)
    assert isinstance(loaded, nn.Module)
    assert loaded.layers[0].up.left.weight is loaded.layers[1].up.left.weight
    assert_same(small, loaded)


class HalfBiased(TiedBlocks):
    """The tie is of one layer with a bias and one without, in either order."""

    without = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers[self.without].up.bias = None


class BiasedLater(HalfBiased):
    without = 0


def test_pivoted_factors_of_a_tie_have_one_order(tmp_path: Path) -> None:
    model = TiedBlocks().eval()
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    name = next(w.name for w in backend.weights if len(w.layers) > 1)
    matrix = backend.read(name)
    factors = pivot(directions(matrix, name=name).truncate(matrix, 5))
    assert factors.order is not None and not np.array_equal(factors.order, np.arange(len(factors.order)))
    small = backend.rewrite({name: Replacement("pivoted", factors)})
    a, b = (small.module.layers[i].up for i in (0, 1))
    assert a.order is b.order
    with torch.no_grad():
        # The dense model with the product in the place of the weight, which both layers read.
        model.layers[0].up.weight.copy_(torch.from_numpy(factors.product()))
    x = torch.randn(2, 5, 16)
    assert torch.allclose(small.module(x), model(x), atol=1e-4)
    small.save(tmp_path)
    loaded = load(tmp_path, arch=TiedBlocks)
    assert isinstance(loaded, nn.Module)
    assert loaded.layers[0].up.order is loaded.layers[1].up.order
    assert_same(small, loaded)


@pytest.mark.parametrize("kind", [HalfBiased, BiasedLater])
def test_a_tie_of_layers_with_and_without_a_bias(kind: type[HalfBiased], tmp_path: Path) -> None:
    model = kind().eval()
    backend = open_model(model)
    assert isinstance(backend, ModuleBackend)
    exact = {w.name: two_factors(backend.read(w.name), w.full_rank) for w in backend.weights}
    small = backend.rewrite(exact)
    x = torch.randn(2, 5, 16)
    assert torch.allclose(small.module(x), model(x), atol=1e-5)
    small.save(tmp_path)
    loaded = load(tmp_path, arch=kind)
    assert isinstance(loaded, nn.Module)
    assert_same(small, loaded)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tied_head_stays_tied(kind: str, tmp_path: Path) -> None:
    model = tiny_transformer(kind)
    model.save_pretrained(tmp_path / "dense")
    backend = open_model(tmp_path / "dense")
    assert isinstance(backend, ModuleBackend)
    small = backend.rewrite(replacements(backend))
    (tmp_path / "small").mkdir()
    small.save(tmp_path / "small")
    loaded = load(tmp_path / "small")
    assert isinstance(loaded, nn.Module)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert_same(small, loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_transformer("bert").to(dtype).save_pretrained(tmp_path / "dense")
    backend = open_model(tmp_path / "dense")
    assert isinstance(backend, ModuleBackend)
    assert backend.weights[0].dtype == str(dtype).removeprefix("torch.")
    (tmp_path / "small").mkdir()
    backend.rewrite(replacements(backend)).save(tmp_path / "small")
    loaded = lowrank.load(tmp_path / "small")
    assert {p.dtype for p in loaded.parameters()} == {dtype}


def test_transformer_encoder_leaves_its_fused_path() -> None:
    """Its fused kernel would multiply by the dense product, or fail; the factors must be what runs."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    backend = open_model(encoder)
    assert isinstance(backend, ModuleBackend)
    small = backend.rewrite(replacements(backend, 16)).module
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    calls = []
    small.layers[1].linear1.right.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        a, b = encoder(x, src_key_padding_mask=padding), small(x, src_key_padding_mask=padding)
    assert calls
    assert torch.allclose(a[0], b[0], atol=1e-5) and torch.allclose(a[1, :3], b[1, :3], atol=1e-5)


def test_a_folder_that_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no"):
        load(tmp_path)
