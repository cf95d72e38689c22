"""Checkpoints as trainers write them: what is taken for the weights, under which names, in which type."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Blocks, trained_blocks
from checkpoints import NO_DATA, STREAMED, checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lowrank
from lowrank.backends import Backend, Opening, open_model
from lowrank.backends.names import fit_names
from lowrank.backends.torch import ModuleBackend, StateDictBackend
from lowrank.backends.torch.trainer_file import weights_in
from lowrank.errors import UnsupportedModel
from lowrank.inspection import inspect

ARCH = Opening(arch="builders:build_blocks")
State = dict[str, Tensor]


def state(scale: float = 1.0) -> State:
    torch.manual_seed(0)
    return {name: tensor * scale for name, tensor in trained_blocks().state_dict().items()}


def optimizer() -> dict[str, Any]:
    module = trained_blocks()
    made = torch.optim.AdamW(module.parameters())
    module(torch.randn(3, 16)).sum().backward()
    made.step()
    return made.state_dict()


def prefixed(prefix: str, weights: State) -> State:
    return {prefix + name: tensor for name, tensor in weights.items()}


def is_same(backend: Backend, expected: State) -> bool:
    assert isinstance(backend, ModuleBackend)
    have = backend.module.state_dict()
    return have.keys() == expected.keys() and all(torch.equal(have[name], expected[name]) for name in have)


@dataclass
class Options:
    """As a training script has them."""

    rate: float = 0.1
    heads: list[int] = field(default_factory=lambda: [1, 2])


SAVED: dict[str, Any] = {
    "nanogpt": lambda w: {"model": w, "optimizer": optimizer(), "iter_num": 3, "best_val_loss": torch.tensor(1.2)},
    "lightning": lambda w: {"state_dict": w, "epoch": 1, "loops": {"a": {}}, "optimizer_states": [optimizer()]},
    "deepspeed": lambda w: {"module": w, "ds_version": "0.15", "buffer_names": [], "lr_scheduler": {"x": 1}},
    "own name": lambda w: {"policy": w, "loss": torch.tensor(0.3), "rng_state": torch.zeros(9, 9)},
    "two deep": lambda w: {"checkpoint": {"model": w, "step": torch.tensor(3)}, "args": {"lr": 0.1}},
    "only an average": lambda w: {"ema": {"module": w, "decay": 0.9}},
    "numpy scores": lambda w: {"model": w, "best": np.float64(1.2), "steps": np.arange(3)},
    "options": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1, out=Path("out"))},
    "own options": lambda w: {"model": w, "config": Options(), "log": defaultdict(list, loss=[0.1])},
    "critic": lambda w: {"model": w, "critic": state(2.0)},
    "parts": lambda w: {name: {k.partition(".")[2]: t for k, t in w.items() if k.startswith(name)} for name in PARTS},
}
PARTS = ("layers", "classifier")


@pytest.mark.parametrize("kind", SAVED)
def test_the_mapping_with_the_weights_is_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.pt"
    torch.save(SAVED[kind](state()), path)
    assert is_same(open_model(path, ARCH), state())
    by_name, seen = open_model(path), inspect(path)
    assert isinstance(by_name, StateDictBackend)
    assert by_name.tensors.keys() == state().keys() == {each["name"] for each in seen.facts["contents"]}
    assert len(lowrank.analyze(path, settings=NO_DATA).weights) == 4


def test_what_else_is_in_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(SAVED["nanogpt"](state()), path)
    assert inspect(path).facts["weights"] == "model"
    assert "under 'model' in a checkpoint of a trainer" in inspect(path).what
    assert inspect(path).facts["beside"] == ["optimizer", "iter_num", "best_val_loss"]
    notes = lowrank.analyze(path, settings=NO_DATA).notes
    assert any("under 'model'; the file also holds optimizer, iter_num, best_val_loss" in note for note in notes)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda: {"model": state(), "ema": state(2.0)}, "ema"),
        (lambda: {"state_dict": state(), "state_dict_ema": state(2.0)}, "state_dict_ema"),
        (lambda: {"params": state(), "params_ema": state(2.0)}, "params_ema"),
        (lambda: {"student": prefixed("module.", state()), "teacher": prefixed("module.", state(2.0))}, "teacher"),
        (lambda: {"model": state(), "ema": {"shadow": state(2.0), "decay": 0.9}}, "ema"),
        (lambda: {**prefixed("online_model.", state()), **prefixed("ema_model.", state(2.0))}, "ema_model"),
        (lambda: {"model": state(), "critic": state(2.0)}, "critic"),
        (lambda: {"generator": state(), "discriminator": state(2.0)}, "discriminator"),
    ],
)
def test_other_weights_of_a_file(tmp_path: Path, content: Any, name: str) -> None:
    path = tmp_path / "m.pt"
    torch.save(content(), path)
    first = open_model(path, ARCH)
    assert is_same(first, state())
    second = open_model(path, Opening(arch=ARCH.arch, weights=name))
    assert is_same(second, state(2.0))
    assert first.source["fingerprint"] != second.source["fingerprint"]
    if name != "discriminator":
        assert any(f"--weights {name}" in note for note in first.source["notes"])
        assert any(f"--weights {name}" in step for step in inspect(path).next)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    torch.save({"model": state(), "ema": state()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"under 'emma'; the file has model, ema"):
        open_model(tmp_path / "m.pt", Opening(weights="emma"))


def test_a_run_remembers_which_weights(tmp_path: Path) -> None:
    torch.save({"model": state(), "ema": state(2.0)}, tmp_path / "m.pt")
    opening = Opening(weights="ema")
    lowrank.analyze(tmp_path / "m.pt", output=tmp_path / "run", settings=NO_DATA, opening=opening)
    lowrank.compress(budget=0.9, output=tmp_path / "run", latency=False)
    loaded = lowrank.load(tmp_path / "run")
    assert isinstance(loaded, dict)
    assert torch.equal(loaded["classifier.weight"], state(2.0)["classifier.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "a.b.c.", ""])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_common_prefix_is_taken_off(tmp_path: Path, prefix: str, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    save(prefixed(prefix, state()), path)
    backend = open_model(path, ARCH)
    assert is_same(backend, state())
    assert any(f"{prefix!r} was taken off" in note for note in backend.source.get("notes", ())) == bool(prefix)


def save(weights: State, path: Path) -> None:
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in weights.items()}, path, {"format": "pt"})
    else:
        torch.save(weights, path)


def test_wrappers_within_names_are_taken_out(tmp_path: Path) -> None:
    inner = {name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in state().items()}
    torch.save(inner, tmp_path / "m.pt")
    assert is_same(open_model(tmp_path / "m.pt", ARCH), state())
    parallel = {name.replace("layers.", "module.layers.module."): tensor for name, tensor in state().items()}
    torch.save(parallel, tmp_path / "m.pt")
    assert is_same(open_model(tmp_path / "m.pt", ARCH), state())
    torch.save(averaged(), tmp_path / "m.pt")
    assert is_same(open_model(tmp_path / "m.pt", ARCH), state())


def averaged() -> State:
    torch.manual_seed(0)
    return torch.optim.swa_utils.AveragedModel(trained_blocks()).state_dict()


names = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map(".".join)


@settings(max_examples=60, deadline=None)
@given(st.sets(names, min_size=1, max_size=8), st.lists(st.sampled_from(["module", "net", "x"]), max_size=3))
def test_names_fit_whatever_is_put_before_them(wanted: set[str], prefix: list[str]) -> None:
    stored = [".".join([*prefix, name]) for name in sorted(wanted)]
    fit = fit_names(wanted, [*stored, "n_averaged"])
    assert dict(fit.names) == dict(zip(stored, sorted(wanted), strict=True))
    assert fit.left == ("n_averaged",)
    assert fit.is_changed == bool(prefix)


def test_names_that_do_not_fit_are_shown(tmp_path: Path) -> None:
    torch.save({name.replace("layers", "blocks"): tensor for name, tensor in state().items()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"expects layers\.0\.up\.weight .*the file has blocks\.0\.up\.weight"):
        open_model(tmp_path / "m.pt", ARCH)


def test_a_shape_that_does_not_fit_is_shown(tmp_path: Path) -> None:
    torch.save({**state(), "classifier.weight": torch.zeros(5, 16)}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"has classifier.weight as 3 x 16, the file has .* as 5 x 16"):
        open_model(tmp_path / "m.pt", ARCH)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    torch.save({**state(), "rope.freqs": torch.zeros(8)}, tmp_path / "m.pt")
    analysis = lowrank.analyze(tmp_path / "m.pt", settings=NO_DATA, opening=ARCH)
    assert any("no place for a stored tensor, left out: rope.freqs" in note for note in analysis.notes)


def test_more_layers_than_the_module_has_are_refused(tmp_path: Path) -> None:
    more = {name.replace("layers.1", "layers.2"): tensor for name, tensor in state().items()}
    torch.save({**more, **state()}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"it has layers\.2\..* fewer such layers"):
        open_model(tmp_path / "m.pt", ARCH)


class Tied(nn.Module):
    """A table, a head tied to it, and a buffer that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(24, 16), nn.Linear(16, 24, bias=False)
        self.blocks = Blocks(16, 24)
        self.blocks.classifier = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.ones(3, 3))

    def forward(self, ids: Tensor) -> Tensor:
        # The mask of float32 makes numbers of float32 of any others.
        return self.head(self.blocks(self.table(ids) * torch.full((1,), 1.0)))


def tied() -> nn.Module:
    return Tied()


@pytest.mark.parametrize("lost", ["head.weight", "table.weight", "mask"])
def test_ties_and_buffers_may_be_missing(tmp_path: Path, lost: str) -> None:
    torch.manual_seed(1)
    whole = Tied().state_dict()
    torch.save({name: tensor for name, tensor in whole.items() if name != lost}, tmp_path / "m.pt")
    backend = open_model(tmp_path / "m.pt", Opening(arch="test_trainer_files:tied"))
    assert is_same(backend, whole)
    assert isinstance(backend, ModuleBackend) and backend.module.head.weight is backend.module.table.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arch", ["builders:build_blocks", "test_trainer_files:tied"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, dtype: torch.dtype, arch: str) -> None:
    torch.manual_seed(1)
    dense = trained_blocks() if arch.startswith("builders") else Tied().eval()
    torch.save({name: tensor.to(dtype) for name, tensor in dense.state_dict().items()}, tmp_path / "m.pt")
    report = lowrank.compress(
        tmp_path / "m.pt", 0.7, output=tmp_path / "run", settings=NO_DATA, latency=False, opening=Opening(arch=arch)
    )
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {dtype}
    assert (
        report.model.bytes_after
        < report.model.bytes_before
        == sum({t.data_ptr(): 2 * t.numel() for t in dense.state_dict().values()}.values())
    )
    loaded = lowrank.load(tmp_path / "run", arch=arch)
    assert isinstance(loaded, nn.Module)
    runs = torch.randint(0, 24, (2, 5)) if "tied" in arch else torch.randn(2, 16, dtype=dtype)
    assert torch.isfinite(loaded(runs)).all()


def test_adapters_are_no_models(tmp_path: Path, bert_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    module = trained_blocks()
    wrapped: Any = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["up", "down"]))
    wrapped.save_pretrained(str(tmp_path / "lora"))
    torch.save(wrapped.state_dict(), tmp_path / "unmerged.pt")
    shutil.copy(bert_folder / "config.json", tmp_path)
    command = f"lowrank compress MODEL --lora {tmp_path / 'lora'} --budget 0.5"
    for path in (tmp_path / "lora", tmp_path / "lora" / "adapter_model.safetensors"):
        assert command in inspect(path).next
        for streamed in (None, True):
            if streamed is None or path.is_dir():
                with pytest.raises(UnsupportedModel, match="of a LoRA, and no model") as error:
                    open_model(path, streamed=streamed)
                assert command in str(error.value)
    config = Opening(config=str(tmp_path / "config.json"))
    for opening in (Opening(), ARCH, config):
        with pytest.raises(UnsupportedModel, match="a LoRA beside its layers, not merged.*merge_and_unload"):
            open_model(tmp_path / "unmerged.pt", opening)
    assert inspect(tmp_path / "unmerged.pt").kind == "unmerged-adapter"
    for verb in (
        lowrank.analyze,
        lambda path: lowrank.compress(path, 0.5),
        lambda path: lowrank.export(path, tmp_path),
    ):
        with pytest.raises(UnsupportedModel, match="a LoRA"):
            verb(tmp_path / "unmerged.pt")


def test_kohya_names_are_an_adapter(tmp_path: Path) -> None:
    torch.save(
        {"lora_unet_q.lora_down.weight": torch.zeros(4, 8), "lora_unet_q.lora_up.weight": torch.zeros(8, 4)},
        tmp_path / "m.pt",
    )
    with pytest.raises(UnsupportedModel, match="of a LoRA, and no model"):
        open_model(tmp_path / "m.pt")


def test_shards_of_trainers_say_what_makes_them_whole(tmp_path: Path) -> None:
    torch.save({"module": {name: torch.empty(0) for name in state()}, "ds_version": "0.15"}, tmp_path / "zero.pt")
    torch.save({"model": {"_fsdp_wrapped_module._flat_param": torch.zeros(99)}}, tmp_path / "fsdp.pt")
    torch.save(optimizer(), tmp_path / "optimizer.pt")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / "deepspeed" / "global_step3").mkdir(parents=True)
    (tmp_path / "deepspeed" / "zero_to_fp32.py").write_text("")
    (tmp_path / "last.ckpt" / "checkpoint").mkdir(parents=True)
    (tmp_path / "last.ckpt" / "latest").write_text("checkpoint")
    (tmp_path / "fsdp.ckpt").mkdir()
    for name in ("__0_0.distcp", "meta.pt"):
        (tmp_path / "fsdp.ckpt" / name).write_bytes(b"x")
    for name, message in {
        "zero.pt": "placeholders of DeepSpeed ZeRO-3.*python zero_to_fp32.py",
        "fsdp.pt": "a shard of FSDP.*full_state_dict=True",
        "last.ckpt": "a checkpoint of DeepSpeed.*convert_zero_checkpoint_to_fp32_state_dict",
        "fsdp.ckpt": "a distributed checkpoint.*consolidate_checkpoint",
        "optimizer.pt": "state of an optimizer, and no model",
        "dcp": "a distributed checkpoint.*dcp_to_torch",
        "deepspeed": "a checkpoint of DeepSpeed.*python zero_to_fp32.py",
    }.items():
        with pytest.raises(UnsupportedModel, match=message):
            open_model(tmp_path / name)
        seen = inspect(tmp_path / name)
        assert seen.kind not in ("state-dict", "weights-folder", "unknown")


def test_a_checkpoint_of_lightning_with_objects_says_how_to_save_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": prefixed("net.", state()), "hyper_parameters": argparse.Namespace(a=1)}, path)
    assert is_same(open_model(path, ARCH), state())
    torch.save({"state_dict": state(), "hyper_parameters": {"run": json.JSONDecoder}}, path)
    with pytest.raises(UnsupportedModel, match="a checkpoint of Lightning: save its weights alone with python -c"):
        open_model(path)
    (line,) = inspect(path).next
    subprocess.run(["bash", "-c", line.replace("python", sys.executable, 1)], check=True, cwd=tmp_path)
    assert is_same(open_model(tmp_path / "last.weights.pt", ARCH), state())


def test_an_average_without_names_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"model": state(), "ema": {"shadow_params": list(state().values()), "decay": 0.9}}, path)
    assert any("'ema' holds a moving average" in note for note in open_model(path, ARCH).source["notes"])
    with pytest.raises(UnsupportedModel, match="'ema' holds a moving average .* without names"):
        open_model(path, Opening(arch=ARCH.arch, weights="ema"))


@pytest.mark.parametrize("names", [("m-00001-of-00002.pt", ""), ("consolidated.00.pth", "consolidated.01.pth")])
def test_a_file_that_is_one_of_several_says_so(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in filter(None, names):
        torch.save(state(), tmp_path / name)
    assert any("one of 2 files" in note for note in open_model(tmp_path / names[0]).source["notes"])
    torch.save(state(), tmp_path / "model.pt")
    assert "notes" not in open_model(tmp_path / "model.pt").source


def test_only_files_with_weights_are_opened(tmp_path: Path, bert_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    dense: Any = open_model(bert_folder)
    (folder / "model.safetensors").unlink()
    torch.save(dense.module.state_dict(), folder / "pytorch_model.bin")
    torch.save({"args": json.JSONDecoder}, folder / "training_args.bin")
    torch.save(optimizer(), folder / "optimizer.bin")
    assert is_same(open_model(folder), dense.module.state_dict())
    seen = inspect(folder).facts
    assert seen["weight_files"] == ["pytorch_model.bin"]
    assert seen["not_opened"] == ["optimizer.bin", "training_args.bin"]


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors", "index"])
def test_prefixes_in_folders(tmp_path: Path, bert_folder: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    dense: Any = open_model(bert_folder)
    (folder / "model.safetensors").unlink()
    weights = prefixed("module._orig_mod.", dense.module.state_dict())
    if kind == "index":
        place = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(weights)}
        for shard in set(place.values()):
            save({name: tensor for name, tensor in weights.items() if place[name] == shard}, folder / shard)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    else:
        save(weights, folder / kind)
    backend = open_model(folder)
    assert is_same(backend, dense.module.state_dict())
    assert "'module._orig_mod.' was taken off" in backend.source["notes"][0]


def test_prefixes_in_streamed_folders(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = checkpoint(tmp_path / "model", "LlamaForCausalLM")
    before = open_model(folder, streamed=True)
    shutil.copytree(folder, tmp_path / "other")
    for path in (tmp_path / "other").glob("*.safetensors"):
        save(prefixed("module.", load_file(path)), path)
    index = tmp_path / "other" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": prefixed("module.", content["weight_map"])}))
    after = open_model(tmp_path / "other", streamed=True)
    assert [w.name for w in after.weights] == [w.name for w in before.weights]
    assert all(np.array_equal(after.read(w.name), before.read(w.name)) for w in after.weights)
    options: dict[str, Any] = {"settings": NO_DATA, "execution": STREAMED}
    for name in ("model", "other"):
        lowrank.compress(tmp_path / name, 0.5, output=tmp_path / f"{name}-run", **options)
    first, second = (lowrank.load(tmp_path / f"{name}-run") for name in ("model", "other"))
    assert isinstance(first, nn.Module) and isinstance(second, nn.Module)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_names_of_old_are_transformers_own_to_convert(tmp_path: Path, bert_folder: Path) -> None:
    dense: Any = open_model(bert_folder)
    with torch.no_grad():
        for name, tensor in dense.module.state_dict().items():
            tensor += 0.1 * ("LayerNorm" in name)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in dense.module.state_dict().items()}
    old = {n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}
    torch.save(prefixed("module.", old), tmp_path / "m.pt")
    backend = open_model(tmp_path / "m.pt", Opening(config=str(bert_folder / "config.json")))
    assert is_same(backend, dense.module.state_dict())
    assert backend.source["notes"] == ["'module.' was taken off the stored names, which then fit the model"]


def test_a_checkpoint_beside_a_config_is_not_the_folders(tmp_path: Path, bert_folder: Path) -> None:
    shutil.copy(bert_folder / "config.json", tmp_path)
    dense: Any = open_model(bert_folder)
    torch.save({"model": dense.module.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(UnsupportedModel, match=r"give .*last.pt with --config .*config.json"):
        open_model(tmp_path)
    assert "last.pt --config" in inspect(tmp_path).next[0]
    assert is_same(
        open_model(tmp_path / "last.pt", Opening(config=str(tmp_path / "config.json"))), dense.module.state_dict()
    )


def test_names_that_do_not_fit_a_config_are_shown(tmp_path: Path, bert_folder: Path) -> None:
    dense: Any = open_model(bert_folder)
    other = {name.replace("attention", "attn"): tensor for name, tensor in dense.module.state_dict().items()}
    torch.save(prefixed("net.", other), tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"lacks encoder.*attention.*dense.weight, and has .*attn.*dense.weight"):
        open_model(tmp_path / "m.pt", Opening(config=str(bert_folder / "config.json")))


def test_a_mapping_that_holds_itself_ends() -> None:
    content: dict[str, Any] = {"model": state()}
    content["again"] = content
    found = weights_in(content)
    assert found is not None and found.place == "model"
