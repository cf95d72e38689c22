"""Narrower heads in torch: attention computes at the width that is left, gives the same, and is saved and loaded so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import ARCHITECTURES, SEQ2SEQ, transformers_model, with_biases
from test_narrow_heads import narrowed
from torch import nn

import lowrank
from lowrank.artifacts.files import RECORD_FILE, read_json, write_json
from lowrank.backends import open_model
from lowrank.backends.records import wide_heads
from lowrank.backends.torch.module import ModuleBackend
from lowrank.backends.torch.replace import prepare_layers_, replace_in_place_, replace_layers_

WIDTHS = {
    "bert": ("encoder.layer.0.attention.self", {"attention_head_size": 4, "all_head_size": 16}),
    "gpt2": ("transformer.h.0.attn", {"head_dim": 4, "split_size": 16, "embed_dim": 32}),
    "vit": ("vit.layers.0.attention", {"head_dim": 4}),
    "opt": ("model.decoder.layers.0.self_attn", {"head_dim": 4, "embed_dim": 32}),
    "t5": ("decoder.block.0.layer.1.EncDecAttention", {"key_value_proj_dim": 4, "inner_dim": 16, "d_model": 32}),
    "swin": ("swin.encoder.layers.1.blocks.0.attention", {"head_dim": 4}),
    "whisper": ("model.decoder.layers.0.encoder_attn", {"head_dim": 4}),
    "encoder": ("layers.0.self_attn", {"head_dim": 8}),
    "roberta": ("encoder.layer.0.attention.self", {"attention_head_size": 4, "all_head_size": 16}),
    "distilbert": ("transformer.layer.0.attention", {"attention_head_size": 4, "dim": 32}),
    "deit": ("deit.layers.0.attention", {"head_dim": 4}),
    "clip": ("vision_model.encoder.layers.0.self_attn", {"head_dim": 4, "embed_dim": 32}),
    "wav2vec2": ("wav2vec2.encoder.layers.0.attention", {"head_dim": 4}),
    "bart": ("model.decoder.layers.0.encoder_attn", {"head_dim": 4}),
}
"""An attention of each model, and what its integers are where heads of 8 channels have kept 3 and 4."""


def padded(dense: ModuleBackend, made: dict[str, Any]) -> nn.Module:
    """The same with the zeros between the heads' channels."""
    module = copy.deepcopy(dense.module)
    replace_layers_(module, {w.name: w for w in dense.weights}, made)
    return module


def pair(name: str) -> tuple[ModuleBackend, ModuleBackend, nn.Module]:
    """The dense model, the one with narrow heads, and the one with zeros in them."""
    dense = open_model(with_biases(name))
    assert isinstance(dense, ModuleBackend)
    made = narrowed(dense)
    return dense, dense.rewrite(made), padded(dense, made)


@pytest.mark.slow_but("bert", "gpt2")
@pytest.mark.parametrize("name", list(WIDTHS))
def test_attention_runs_at_the_width_that_is_left(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    bart = transformers_model("BartForConditionalGeneration", "BartConfig", **SEQ2SEQ, **tokens, forced_eos_token_id=2)
    monkeypatch.setitem(ARCHITECTURES, "bart", bart)
    dense, small, wide = pair(name)
    path, integers = WIDTHS[name]
    attention = small.module.get_submodule(path)
    assert {key: getattr(attention, key) for key in integers} == integers
    assert not wide_heads(small.replaced)
    assert sum(p.numel() for p in small.module.parameters()) == sum(p.numel() for p in wide.parameters())
    assert not isinstance(dense.signature, str)
    for feed in (dense.signature.example(1, 4), dense.signature.example(3, 9, padded=True)):
        zeros = ModuleBackend(wide, {}, dense.signature, dense.rebuild)
        for output, value in zeros.outputs(feed).items():
            np.testing.assert_allclose(small.outputs(feed)[output], value, rtol=1e-4, atol=1e-5)
    small.save(tmp_path)
    again = lowrank.load(tmp_path, arch=lambda: with_biases(name))
    assert isinstance(again, nn.Module)
    loaded = ModuleBackend(again, {}, dense.signature, dense.rebuild)
    for output, value in small.outputs(feed).items():
        assert np.array_equal(loaded.outputs(feed)[output], value)


def saved(name: str, tmp_path: Path) -> tuple[ModuleBackend, Path]:
    """A model of transformers with narrow heads in its folder."""
    with_biases(name).save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    dense = open_model(tmp_path / "dense")
    assert isinstance(dense, ModuleBackend)
    small = dense.rewrite(narrowed(dense))
    (tmp_path / "small").mkdir()
    small.save(tmp_path / "small")
    return small, tmp_path / "small"


def test_transformers_loads_and_generates_with_a_narrower_cache(tmp_path: Path) -> None:
    """Through `save_pretrained` and back again, with and without the cache, also one of a fixed size."""
    from transformers import AutoModelForCausalLM

    small, folder = saved("gpt2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    ids = torch.arange(6).reshape(2, 3) + 4
    known: Any = small.module
    told = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = known.generate(ids, use_cache=False, **told)
    for each in (known, model, again):
        assert torch.equal(each.generate(ids, **told), wanted)
    cache = again(input_ids=ids, use_cache=True).past_key_values.layers[0]
    assert cache.keys.shape[-1] == cache.values.shape[-1] == 4
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), known.state_dict().values(), strict=True))


@pytest.mark.slow
def test_the_graph_with_a_cache_is_narrower_and_generates(tmp_path: Path) -> None:
    from lowrank.evaluate.generation import check_generation

    small, _ = saved("gpt2", tmp_path)
    small.write_with_past(tmp_path / "past.onnx")
    graph = onnx.load(tmp_path / "past.onnx").graph
    widths = {v.name: v.type.tensor_type.shape.dim[3].dim_value for v in graph.input if v.name.startswith("past")}
    assert widths == {"past_key_values.0.key": 4, "past_key_values.0.value": 4}
    check_generation(small, tmp_path / "past.onnx")


@pytest.mark.parametrize("name", ["mingpt", "llama"])
def test_what_insists_on_its_width_keeps_it(name: str) -> None:
    """A scale taken of the width, and positions that turn query and key."""
    _, small, wide = pair(name)
    assert len(wide_heads(small.replaced)) == 1
    state, other = small.module.state_dict(), wide.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in other)


def test_a_live_module_is_made_as_narrow() -> None:
    dense, small, _ = pair("bert")
    module, like = copy.deepcopy(dense.module), copy.deepcopy(dense.module)
    weights = {w.name: w for w in dense.weights}
    layers = replace_in_place_(module, weights, narrowed(dense), small.replaced)
    prepare_layers_(like, layers).load_state_dict(module.state_dict())
    ids = torch.arange(7)[None]
    with torch.no_grad():
        outputs = [each(input_ids=ids).last_hidden_state for each in (small.module, module, like)]
    assert all(torch.equal(outputs[0], each) for each in outputs[1:])


@pytest.mark.parametrize("widths", [{"attention_head_size": 1 << 40}, {"training": 0}, {"forward": 1}, {"nothing": 4}])
def test_a_record_cannot_set_what_is_no_width(widths: dict[str, int], tmp_path: Path) -> None:
    _, folder = saved("bert", tmp_path)
    record = read_json(folder / RECORD_FILE, "model")
    for entry in record["replaced"].values():
        if "set" in entry["attention"]:
            entry["attention"]["set"] = widths
    write_json(folder / RECORD_FILE, "model", record)
    with pytest.raises(lowrank.LowRankError, match="has no width"):
        lowrank.load(folder)


@pytest.mark.slow
def test_narrow_heads_compile_and_take_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    _, folder = saved("bert", tmp_path)
    model: Any = lowrank.load(folder)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).last_hidden_state
        compiled = torch.compile(model, backend="aot_eager")(input_ids=ids).last_hidden_state
    assert torch.allclose(plain, compiled, atol=1e-6)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*attention.*(value|output\.dense)"))
    for key, parameter in wrapped.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        adapted = wrapped(input_ids=ids).last_hidden_state
        merged = wrapped.merge_and_unload()(input_ids=ids).last_hidden_state
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert torch.allclose(adapted, merged, atol=1e-5)
