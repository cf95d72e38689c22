"""Other forms of what there is: ONNX Runtime's own format, and graphs that take adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lowrank.backends import open_model
from lowrank.edge.adapters import write_adapter

ORT, OPERATORS = "model.ort", "model.required_operators_and_types.config"


def run(path: Path, feed: dict[str, np.ndarray], options: Any = None) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: feed[i.name] for i in session.get_inputs() if i.name in feed}, options)[0]


def a_feed() -> dict[str, np.ndarray]:
    ids = np.array([[5, 6, 7, 8]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.slow
def test_ort_of_a_run_and_of_a_file(cli: Any, shared_bert_run: Path, tmp_path: Path) -> None:
    for source, out in ((shared_bert_run, tmp_path / "a"), (shared_bert_run / "model.onnx", tmp_path / "b")):
        done = cli("export", source, "--ort", "-o", out)
        assert done.code == 0, done.err
        assert sorted(path.name for path in out.iterdir()) == [ORT, OPERATORS]
        # No word of the converter is among the results.
        assert len(done.out.strip().splitlines()) == 2 and done.out.count("model.") == 2
        assert np.allclose(run(out / ORT, a_feed()), run(shared_bert_run / "model.onnx", a_feed()), atol=1e-5)
    operators = (tmp_path / "a" / OPERATORS).read_text(encoding="utf-8")
    assert "\nai.onnx;" in operators and "com.microsoft;1;" in operators and "- model.ort\n" in operators


def test_ort_of_a_model(cli: Any, bert_folder: Path, tmp_path: Path) -> None:
    done = cli("export", bert_folder, "--ort", "--quantize", "int8", "-o", tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} >= {"model.onnx", ORT, OPERATORS}
    assert "DynamicQuantizeMatMul" in (tmp_path / OPERATORS).read_text(encoding="utf-8")


def test_a_damaged_graph_has_no_other_form(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bad.ort").write_bytes(b"earlier")
    done = cli("export", tmp_path / "bad.onnx", "--ort", "-o", tmp_path / "out")
    assert done.code == 1 and "cannot be written as .ort" in done.err
    assert (tmp_path / "out" / "bad.ort").read_bytes() == b"earlier"


@pytest.mark.slow
def test_adapter_inputs(cli: Any, shared_bert_run: Path, bert_folder: Path, tmp_path: Path) -> None:
    for source in (shared_bert_run, bert_folder):
        out = tmp_path / source.name
        done = cli("export", source, "--adapter-inputs", "-o", out)
        assert done.code == 0, done.err
        path = out / "model_with_adapters.onnx"
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        taken = {i.name: i.shape for i in session.get_overridable_initializers()}
        assert len(taken) >= 8 and all(name.endswith(("lora_A", "lora_B")) for name in taken)
        plain = run(path, a_feed())
        of_run = source == shared_bert_run
        wanted = run(source / "model.onnx", a_feed()) if of_run else open_model(str(source)).run(a_feed())
        assert np.allclose(plain, wanted, atol=1e-4)
        rng, pairs = np.random.default_rng(0), {}
        for name in {each.rpartition(".")[0] for each in taken}:
            a, b = taken[f"{name}.lora_A"][0], taken[f"{name}.lora_B"][1]
            pairs[name] = tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((a, 3), (3, b)))
        write_adapter(pairs, out / "other.onnx_adapter")
        loaded, options = ort.LoraAdapter(), ort.RunOptions()
        loaded.Load(str(out / "other.onnx_adapter"))
        options.add_active_adapter(loaded)
        assert np.abs(run(path, a_feed(), options) - plain).max() > 0.1
    both = cli("export", bert_folder, "--adapter-inputs", "--ort", "-o", tmp_path / "no")
    assert both.code == 2 and "a graph of its own" in " ".join(both.err.split())
