"""A causal language model with its key-value cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from architectures import DECODER, build, transformers_model
from builders import shape_spectra_
from onnx_builders import matmul_right

import lowrank
from lowrank.backends import open_model
from lowrank.backends.torch.export_cache import export_with_past, reads_positions
from lowrank.errors import ExportError
from lowrank.evaluate.generation import check_generation, generate, padded_left, places_of


@pytest.mark.slow
def test_with_past_generates_what_torch_does(tmp_path: Path, cli) -> None:
    build("llama").save_pretrained(tmp_path / "m")
    run = tmp_path / "run"
    outcome = cli("compress", tmp_path / "m", "--budget", 0.5, "--with-past", "--no-latency", "-o", run)
    assert outcome.code == 0, outcome.err
    session = ort.InferenceSession(run / "model_with_past.onnx")
    past = "past_sequence_length + sequence_length"
    shapes = {i.name: i.shape for i in session.get_inputs()}
    assert [*shapes][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", past]
    assert shapes["past_key_values.0.key"] == ["batch_size", 2, "past_sequence_length", 8]
    assert [o.name for o in session.get_outputs()] == ["logits", "present.0.key", "present.0.value"]
    prompt = np.array([[5, 9, 2, 44, 7]])
    module = lowrank.load(run)
    with torch.no_grad():
        told = module.generate(torch.from_numpy(prompt), max_new_tokens=9, min_new_tokens=9, do_sample=False)
    assert np.array_equal(generate(run / "model_with_past.onnx", prompt, 9), told[:, 5:].numpy())


DECODERS: dict[str, tuple[Any, bool]] = {
    # Learned places, rotary ones, and slopes that take none.
    "gpt2": (
        transformers_model("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, vocab_size=64),
        True,
    ),
    "opt": (lambda: build("opt"), True),
    "llama": (transformers_model("LlamaForCausalLM", "LlamaConfig", **DECODER), True),
    "bloom": (
        transformers_model("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
        False,
    ),
}


@pytest.mark.slow_but("gpt2")
@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_that_is_padded_on_the_left_goes_on_as_each_text_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    made, takes_positions = DECODERS[name]
    module = shape_spectra_(made()).eval()
    assert reads_positions(module) == takes_positions
    path = tmp_path / "past.onnx"
    export_with_past(module, path, 20)
    names = [i.name for i in ort.InferenceSession(path).get_inputs()]
    assert ("position_ids" in names) == takes_positions
    prompts = [np.array(ids) for ids in ([5, 9, 2, 44, 7, 8], [11, 3], [21, 30, 8, 40])]
    found = generate(path, padded_left(prompts)[0], 8, padded_left(prompts)[1])
    for row, prompt in zip(found, prompts, strict=True):
        ids = torch.from_numpy(prompt)[None]
        with torch.no_grad():
            for _ in range(8):
                ids = torch.cat([ids, module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert row.tolist() == ids[0, len(prompt) :].tolist()


def test_positions_that_a_model_takes_and_does_not_read_are_no_input() -> None:
    falcon = transformers_model("FalconForCausalLM", "FalconConfig", **DECODER, alibi=True)()
    assert not reads_positions(falcon.eval())


def test_places_begin_where_a_text_does() -> None:
    ids, mask = padded_left([np.array([7, 8, 9]), np.array([4])])
    assert ids.tolist() == [[7, 8, 9], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert places_of(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_graph_without_positions_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.backends.torch import export_cache

    torch.manual_seed(3)
    module = shape_spectra_(DECODERS["gpt2"][0]()).eval()
    with torch.no_grad():
        # So that places decide.
        module.transformer.wpe.weight.mul_(50)
    monkeypatch.setattr(export_cache, "reads_positions", lambda _: False)
    export_with_past(module, tmp_path / "past.onnx", 20)
    monkeypatch.undo()
    with pytest.raises(ExportError, match="chooses other tokens than torch"):
        check_generation(open_model(module), tmp_path / "past.onnx")


@pytest.mark.parametrize("name", ["bert", "t5", "whisper", "onnx", "state"])
def test_a_model_without_such_a_cache_is_refused_before_the_work(name: str, tmp_path: Path, cli) -> None:
    import onnx

    path = tmp_path / "m"
    if name == "onnx":
        path = tmp_path / "m.onnx"
        onnx.save(matmul_right()[0], path)
    elif name == "state":
        path = tmp_path / "m.pt"
        torch.save({"layers.0.up.weight": torch.randn(40, 16), "layers.0.down.weight": torch.randn(16, 40)}, path)
    else:
        build(name).save_pretrained(path)
    outcome = cli("compress", path, "--budget", 0.5, "--with-past", "--no-latency", "-o", tmp_path / "run")
    assert outcome.code == 1 and "--with-past cannot be had" in outcome.err
    assert "analyzing" not in outcome.err and not (tmp_path / "run/analysis.json").exists()
    if name != "onnx":
        outcome = cli("export", path, "--with-past", "-o", tmp_path / "out")
        assert outcome.code == 1 and "--with-past cannot be had" in outcome.err
        assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True
