"""Opening: every kind of file, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Blocks, saved_state, tiny_transformer, trained_blocks
from torch import nn

from lowrank.backends import Opening, open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.torch import ModuleBackend, StateDictBackend
from lowrank.errors import NonFiniteWeight, UnsupportedModel


def test_state_dict(tmp_path: Path) -> None:
    backend = open_model(saved_state(tmp_path / "model.pt"))
    assert isinstance(backend, StateDictBackend)
    assert [w.name for w in backend.weights][:2] == ["layers.0.up.weight", "layers.0.down.weight"]
    assert backend.params == sum(p.numel() for p in Blocks().parameters())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_nested_state_dict(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: trained_blocks().state_dict()}, tmp_path / "m.pth")
    assert len(open_model(tmp_path / "m.pth").weights) == 5


def test_state_dict_with_arch(tmp_path: Path) -> None:
    backend = open_model(saved_state(tmp_path / "m.pt"), Opening(arch="builders:build_blocks"))
    assert isinstance(backend, ModuleBackend)
    assert isinstance(backend.signature, Signature)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("builders", "must read package.module:factory"),
        ("nowhere_at_all:f", "No module named"),
        ("builders:nothing", "no attribute"),
        ("builders:WORDS", "not callable"),
        ("pathlib:Path", "not a torch.nn.Module"),
        ("torch.nn:Identity", "does not fit"),
    ],
)
def test_arch_that_does_not_work(tmp_path: Path, arch: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        open_model(saved_state(tmp_path / "m.pt"), Opening(arch=arch))


def test_huggingface_folder(bert_folder: Path) -> None:
    backend = open_model(bert_folder)
    assert isinstance(backend, ModuleBackend)
    assert [w.role for w in backend.weights].count("projection") == 12
    assert {w.name for w in backend.weights if w.role == "embedding"} >= {"embeddings.word_embeddings.weight"}
    assert isinstance(backend.signature, Signature)
    assert backend.signature.names == ("input_ids", "attention_mask", "token_type_ids")


def test_safetensors_with_its_config_beside(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bert_folder / "config.json", tmp_path)
    shutil.copy(bert_folder / "model.safetensors", tmp_path / "weights.safetensors")
    a, b = open_model(bert_folder), open_model(tmp_path / "weights.safetensors")
    assert isinstance(a, ModuleBackend) and isinstance(b, ModuleBackend)
    same_outputs(a, b)


def test_pt_with_config(bert_folder: Path, tmp_path: Path) -> None:
    a = open_model(bert_folder)
    assert isinstance(a, ModuleBackend)
    torch.save(a.module.state_dict(), tmp_path / "m.pt")
    b = open_model(tmp_path / "m.pt", Opening(config=str(bert_folder / "config.json")))
    assert isinstance(b, ModuleBackend)
    same_outputs(a, b)


def same_outputs(a: ModuleBackend, b: ModuleBackend) -> None:
    assert isinstance(a.signature, Signature)
    values = a.signature.example(2, 5)
    assert np.array_equal(a.run(values), b.run(values))


def test_safetensors_alone_is_a_state_dict(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bert_folder / "model.safetensors", tmp_path)
    assert isinstance(open_model(tmp_path / "model.safetensors"), StateDictBackend)


def test_pickled_module_only_when_asked(tmp_path: Path) -> None:
    torch.save(trained_blocks(), tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match="--unsafe-pickle"):
        open_model(tmp_path / "m.pt")
    backend = open_model(tmp_path / "m.pt", Opening(unsafe_pickle=True))
    assert isinstance(backend, ModuleBackend)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()",))


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_pickled_code_does_not_run(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "was-here"
    torch.save({"w": torch.zeros(3, 3), "x": Payload(mark)}, tmp_path / f"m{suffix}")
    with pytest.raises(UnsupportedModel, match="--unsafe-pickle"):
        open_model(tmp_path / f"m{suffix}")
    assert not mark.exists()


def a_program(path: Path) -> nn.Module:
    model = trained_blocks()
    shape = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(model, (torch.randn(2, 5, 16),), dynamic_shapes=(shape,))
    torch.export.save(program, path)
    return model


def test_exported_program(tmp_path: Path) -> None:
    model = a_program(tmp_path / "m.pt2")
    backend = open_model(tmp_path / "m.pt2")
    assert isinstance(backend, ModuleBackend) and isinstance(backend.signature, Signature)
    assert [w.name for w in backend.weights] == [n for n, p in model.named_parameters() if p.dim() == 2]
    x = torch.randn(3, 9, 16)
    assert torch.allclose(backend.module(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("key", "evil"),
    [
        ("expr_str", "__import__('os').system('true')"),
        ("expr_str", "\\u0065xec(\\u0063hr(112))"),
        ("expr_str", "Symbol.mro"),
        ("target", "torch.os.system"),
        ("target", "torch.hub.load"),
        ("target", "_operator.methodcaller"),
    ],
)
def test_program_with_code_in_it(tmp_path: Path, key: str, evil: str) -> None:
    """Where an archive's strings reach Python: shape expressions and operator names, escaped or not."""
    a_program(tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as old, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model.json"):
                text = content.decode()
                start = text.index(f'"{key}": "') + len(f'"{key}": "')
                content = (text[:start] + evil + text[text.index('"', start) :]).encode()
            new.writestr(name, content)
    with pytest.raises(UnsupportedModel, match="could run as code"):
        open_model(tmp_path / "bad.pt2")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".pt2"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "text"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt2":
        a_program(path)
    elif suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(trained_blocks().state_dict(), path)
    else:
        saved_state(path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": whole[: len(whole) // 2], "noise": bytes(range(256)) * 8, "text": b"hello\n"}[damage]
    )
    with pytest.raises(UnsupportedModel, match=path.name):
        open_model(path)


def test_things_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="there is no"):
        open_model(tmp_path / "missing.pt")
    with pytest.raises(UnsupportedModel, match="holds no config.json"):
        open_model(tmp_path)
    (tmp_path / "m.onnx").touch()
    with pytest.raises(UnsupportedModel, match="is no ONNX file"):
        open_model(tmp_path / "m.onnx")
    (tmp_path / "m.docx").touch()
    with pytest.raises(UnsupportedModel, match="not a kind of model"):
        open_model(tmp_path / "m.docx")
    torch.save({"a": 1}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match="holds no tensors"):
        open_model(tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match="a dict is not a model"):
        open_model({})


def test_folder_without_weights(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bert_folder / "config.json", tmp_path)
    with pytest.raises(UnsupportedModel, match="holds no weights"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model_type": "unheard-of"}', '{"model_type": "bert", "hidden_size": "x"}']
)
def test_config_that_means_nothing(bert_folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copy(bert_folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match="config"):
        open_model(tmp_path)


def test_config_of_another_model(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(UnsupportedModel, match="has the shape .64, 32., but config.json says .64, 48."):
        open_model(tmp_path / "m")


def test_shard_index(bert_folder: Path, tmp_path: Path) -> None:
    for name, shard in {"missing": "gone.safetensors", "outside": "../model.safetensors"}.items():
        folder = tmp_path / name
        shutil.copytree(bert_folder, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(UnsupportedModel, match=r"gone.safetensors is not there|no file of its folder"):
            open_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(tmp_path: Path, value: float) -> None:
    state = trained_blocks().state_dict()
    state["layers.1.up.weight"][3, 4] = value
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(NonFiniteWeight, match=r"layers.1.up.weight \(40 x 16\) holds"):
        open_model(tmp_path / "m.pt").read("layers.1.up.weight")


def test_integer_and_higher_tensors_are_skipped_with_a_reason(tmp_path: Path) -> None:
    torch.save(
        {
            "a.weight": torch.zeros(4, 4, dtype=torch.int8),
            "b.weight": torch.zeros(2, 2, 2),
            "c": torch.randn(4, 4),
        },
        tmp_path / "m.pt",
    )
    backend = open_model(tmp_path / "m.pt")
    assert [w.name for w in backend.weights] == ["c"]
    assert len(backend.skips) == 2 and all(skip.reason for skip in backend.skips)


def test_missing_weights_are_drawn_alike_and_told(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert_folder, tmp_path / "m")
    state = {k: v for k, v in load_file(bert_folder / "model.safetensors").items() if "pooler" not in k}
    save_file(state, tmp_path / "m/model.safetensors", {"format": "pt"})
    a, b = open_model(tmp_path / "m"), open_model(tmp_path / "m")
    assert isinstance(a, ModuleBackend) and isinstance(b, ModuleBackend)
    assert a.source["not_in_checkpoint"] == ["pooler.dense.bias", "pooler.dense.weight"]
    assert torch.equal(a.module.pooler.dense.weight, b.module.pooler.dense.weight)


def test_attention_modules_become_linear_layers() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    backend = open_model(encoder)
    names = {w.name.rsplit(".", 2)[1] for w in backend.weights}
    assert names == {"linear1", "linear2", "q_proj", "k_proj", "v_proj", "out_proj"}
    assert not backend.skips
    assert any(isinstance(m, nn.MultiheadAttention) for m in encoder.modules()), "the caller's module is unchanged"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta", "distilbert", "vit"])
def test_other_architectures_need_no_code(kind: str) -> None:
    backend = open_model(tiny_transformer(kind))
    assert isinstance(backend, ModuleBackend) and isinstance(backend.signature, Signature)
    assert sum(w.role == "projection" for w in backend.weights) >= 8
    values = backend.signature.example(2, 5)
    assert backend.run(values).shape[0] == 2
    if kind == "gpt2":
        tied = next(w for w in backend.weights if w.role == "embedding")
        assert [(layer.name, layer.kind) for layer in tied.layers] == [
            ("transformer.wte", "lookup"),
            ("lm_head", "linear"),
        ]
