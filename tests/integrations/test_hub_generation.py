"""transformers.js, optimum and onnxruntime-genai generate what torch does, from a folder in the layout of the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from architectures import DECODER, SEQ2SEQ, build, transformers_model
from builders import shape_spectra_
from kept import javascript, packages

import lowrank

pytestmark = [pytest.mark.device, pytest.mark.slow]
npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm")
NEW = 8
IDS = [[5, 9, 2, 44, 7], [5, 6, 8, 9, 11], [30, 31, 32, 33, 34], [40, 3, 6, 12, 8]]
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, Any] = {
    "marian": transformers_model(
        "MarianMTModel",
        "MarianConfig",
        **{**SEQ2SEQ, **ENDS, "pad_token_id": 63},
        decoder_start_token_id=63,
        max_position_embeddings=64,
    ),
    "whisper": lambda: build("whisper"),
    "llama": transformers_model("LlamaForCausalLM", "LlamaConfig", **{**DECODER, "num_hidden_layers": 2}, **ENDS),
    "gpt2": transformers_model(
        "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=64, **ENDS
    ),
}
OPTIMUM = """
import json, sys
import numpy as np, torch
from optimum import onnxruntime
hub, kind, merged, feed, out = sys.argv[1:]
options = {} if merged == "-" else {"use_merged": merged == "yes"}
model = getattr(onnxruntime, kind).from_pretrained(hub, local_files_only=True, **options)
given = {name: torch.from_numpy(value) for name, value in np.load(feed).items()}
found = model.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)
json.dump(found.tolist(), open(out, "w"))
"""
GENAI = """
import json, sys
import numpy as np, onnxruntime_genai as og
hub, ids, out = sys.argv[1:]
ids = np.array(json.loads(ids), np.int32)
model = og.Model(hub)
params = og.GeneratorParams(model)
params.set_search_options(max_length=ids.shape[1] + 8, batch_size=len(ids), do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
json.dump([[int(i) for i in generator.get_sequence(row)] for row in range(len(ids))], open(out, "w"))
"""


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the folder of a model, and the run that it is of, once."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            shape_spectra_(MODELS[name]()).eval().save_pretrained(place / "m")
            settings = lowrank.Settings(calib="none")
            lowrank.compress(place / "m", 0.5, output=place / "run", settings=settings, latency=False)
            lowrank.export_hub(place / "run", place / "hub", dtypes=["int8", "float16", "int4"])
            made[name] = (place / "run", place / "hub")
        return made[name]

    return get


def fed(name: str, rows: int) -> dict[str, np.ndarray]:
    if name == "whisper":
        draw = np.random.default_rng(0)
        return {"input_features": draw.standard_normal((rows, 8, 40)).astype(np.float32)}
    ids = np.array(IDS[:rows])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def by_torch(run: Path, feed: dict[str, np.ndarray]) -> list[list[int]]:
    module: Any = lowrank.load(run)
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    return module.generate(**given, max_new_tokens=NEW, do_sample=False).tolist()


def by_python(packaged: Path, script: str, *arguments: object) -> None:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(packaged)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@npm
@pytest.mark.parametrize("name", ["marian", "whisper"])
def test_transformers_js_translates_and_hears(name: str, hubs: Any, tmp_path: Path) -> None:
    run, hub = hubs(name)
    feed = fed(name, 1 if name == "whisper" else 2)
    tensors = {
        n: {"type": str(value.dtype), "dims": list(value.shape), "data": value.ravel().tolist()}
        for n, value in feed.items()
    }
    (tmp_path / "feed.json").write_text(json.dumps(tensors))
    here = by_torch(run, feed)
    for dtype in ("fp32", "fp16", "int8", "q8", "q4"):
        command = ["node", "decode.mjs", hub, dtype, str(NEW), tmp_path / "feed.json", tmp_path / "out.json"]
        folder = javascript("transformersjs", "@huggingface/transformers")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        there = np.array(found["data"]).reshape(found["dims"])
        # It gives the token that starts a text, and torch leaves that of Whisper out.
        if dtype == "fp32":
            assert there[:, -len(here[0]) :].tolist() == here


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("marian", "ORTModelForSeq2SeqLM"),
        ("whisper", "ORTModelForSpeechSeq2Seq"),
        ("llama", "ORTModelForCausalLM"),
    ],
)
def test_optimum_loads_the_graphs(name: str, kind: str, hubs: Any, tmp_path: Path) -> None:
    run, hub = hubs(name)
    wanted = "optimum==2.3.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "huggingface-hub<1", "tokenizers<0.23"
    np.savez(tmp_path / "feed.npz", **fed(name, 2))  # type: ignore[arg-type]
    for merged in ("-",) if name == "llama" else ("yes", "no"):
        arguments = hub, kind, merged, tmp_path / "feed.npz", tmp_path / "out.json"
        by_python(packages("optimum", *wanted), OPTIMUM, *arguments)
        assert json.loads((tmp_path / "out.json").read_text()) == by_torch(run, fed(name, 2)), merged


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_genai_generates(name: str, rows: int, hubs: Any, tmp_path: Path) -> None:
    run, hub = hubs(name)
    by_python(packages("genai", "onnxruntime-genai==0.18.0"), GENAI, hub, json.dumps(IDS[:rows]), tmp_path / "out.json")
    for there, here in zip(
        json.loads((tmp_path / "out.json").read_text()), by_torch(run, fed(name, rows)), strict=True
    ):
        # What follows the end of a text is filled up.
        assert there[: len(here)] == here or there == here[: len(there)]


def test_the_types_of_a_causal_graph_all_have_the_cache(hubs: Any) -> None:
    _, hub = hubs("llama")
    names = {path.name for path in (hub / "onnx").iterdir()}
    assert names == {f"model{end}.onnx" for end in ("", "_int8", "_quantized", "_fp16", "_q4")}
    for name in names:
        assert "past_key_values.1.value" in [i.name for i in ort.InferenceSession(hub / "onnx" / name).get_inputs()]
