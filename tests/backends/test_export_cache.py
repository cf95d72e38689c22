"""A causal language model with its key-value cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from architectures import build

import lowrank
from lowrank.evaluate.generation import generate


@pytest.mark.slow
def test_with_past_generates_what_torch_does(tmp_path: Path, cli) -> None:
    build("llama").save_pretrained(tmp_path / "m")
    run = tmp_path / "run"
    outcome = cli("compress", tmp_path / "m", "--budget", 0.5, "--with-past", "--no-latency", "-o", run)
    assert outcome.code == 0, outcome.err
    session = ort.InferenceSession(run / "model_with_past.onnx")
    past = "past_sequence_length + sequence_length"
    shapes = {i.name: i.shape for i in session.get_inputs()}
    assert shapes["input_ids"] == ["batch_size", "sequence_length"] and shapes["attention_mask"] == ["batch_size", past]
    assert shapes["past_key_values.0.key"] == ["batch_size", 2, "past_sequence_length", 8]
    assert [o.name for o in session.get_outputs()] == ["logits", "present.0.key", "present.0.value"]
    prompt = np.array([[5, 9, 2, 44, 7]])
    module = lowrank.load(run)
    with torch.no_grad():
        told = module.generate(torch.from_numpy(prompt), max_new_tokens=9, min_new_tokens=9, do_sample=False)
    assert np.array_equal(generate(run / "model_with_past.onnx", prompt, 9), told[:, 5:].numpy())


@pytest.mark.parametrize("name", ["bert", "whisper"])
@pytest.mark.slow
def test_models_without_such_a_cache_say_so(name: str, tmp_path: Path, cli) -> None:
    build(name).save_pretrained(tmp_path / "m")
    outcome = cli("export", tmp_path / "m", "--with-past", "-o", tmp_path / "out")
    assert outcome.code == 1 and "causal language models" in outcome.err
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True
