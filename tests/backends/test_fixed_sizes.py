"""Graphs that take a fixed number of samples, or samples of one length, and samples of unlike length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import WORDS, decaying, made, write_text, write_tokenizer
from onnx import TensorProto, helper
from onnx_builders import IN, OUT, init, model, node, weight

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.onnx import OnnxBackend
from lowrank.calibrate.data import load_calibration
from lowrank.core.truncation.gram import Gram, Tokens
from lowrank.errors import CalibrationError

RNG = np.random.default_rng(2)
FLOATS = RNG.standard_normal((23, 5, IN)).astype(np.float32)


def products(batch: Any, length: Any = "sequence", flat: bool = False) -> onnx.ModelProto:
    """Two products; with `flat` the batch and the sequence are one axis between them."""
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "v"], "y")]
    held = [init(weight(), "w"), init(weight(OUT, IN, 1), "v")]
    if flat:
        shape = init(np.array([-1, OUT]), "shape")
        nodes[1:] = [node("Reshape", ["h", "shape"], "r"), node("MatMul", ["r", "v"], "y")]
        held.append(shape)
    return model(nodes, held, (batch, length, IN))


def opened(made: onnx.ModelProto, path: Path) -> OnnxBackend:
    onnx.save(made, path)
    backend = open_model(path)
    assert isinstance(backend, OnnxBackend)
    return backend


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_run_in_parts(batch: int, tmp_path: Path) -> None:
    fixed, free = (opened(products(b), tmp_path / f"{b}.onnx") for b in (batch, "batch"))
    feed = {"x": FLOATS}
    assert isinstance(fixed.signature, Signature) and fixed.signature.fixed_batch == batch
    assert np.allclose(fixed.run(feed), free.run(feed), atol=1e-6)
    changes = {"w": (2 * fixed.read("w"), None)}
    with fixed.swapped(changes):
        found = fixed.run(feed)
    with free.swapped(changes):
        assert np.allclose(found, free.run(feed), atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_its_moments_are_those_of_all_samples(flat: bool, tmp_path: Path) -> None:
    backend = opened(products(1, flat=flat), tmp_path / "m.onnx")
    seen: dict[str, Gram] = {}

    def observe(name: str, gram: Gram | Tokens) -> None:
        seen[name] = seen[name] + made(gram) if name in seen else made(gram)

    with backend.watching({"w": "input", "v": "input"}) as run:
        run({"x": FLOATS}, observe)
    tokens = FLOATS.reshape(-1, IN).astype(np.float64)
    assert seen["w"].tokens == len(tokens) and np.allclose(seen["w"].moment, tokens.T @ tokens, rtol=1e-5)
    assert seen["v"].tokens == len(tokens)


@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_compressed_as_a_free_one_is(batch: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=FLOATS)
    settings = lowrank.Settings(calib=str(tmp_path / "x.npz"), targets=("all",))
    errors = {}
    for size in (batch, "batch"):
        onnx.save(products(size), tmp_path / "m.onnx")
        run = tmp_path / f"run-{size}"
        report = lowrank.compress(tmp_path / "m.onnx", 0.6, output=run, settings=settings, latency=False)
        assert report.parity is not None and not report.problems
        assert f"batch {size}" in report.parity.cases[0] or size == "batch"
        assert onnx.load(run / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == (
            size if isinstance(size, int) else 0
        )
        errors[size] = report.error.relative
    if batch == 1:
        assert errors[1] == pytest.approx(errors["batch"], rel=1e-3)


def texts_model(length: Any, batch: Any = 1) -> onnx.ModelProto:
    """Ids and a mask to hidden states."""
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, [batch, length]) for n in ("input_ids", "attention_mask")
    ]
    rows = len(WORDS) + 10
    held = [init(decaying(rows, IN, 3).astype(np.float32), "e"), init(weight(), "w"), init(weight(OUT, IN, 1), "v")]
    nodes = [
        node("Gather", ["e", "input_ids"], "x"),
        node("Cast", ["attention_mask"], "m", to=TensorProto.FLOAT),
        node("Unsqueeze", ["m", "axes"], "u"),
        node("Mul", ["x", "u"], "z"),
        node("MatMul", ["z", "w"], "h"),
        node("MatMul", ["h", "v"], "last_hidden_state"),
    ]
    held.append(init(np.array([2]), "axes"))
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_text_is_padded_to_a_fixed_length(tmp_path: Path) -> None:
    onnx.save(texts_model(12), tmp_path / "m.onnx")
    write_tokenizer(tmp_path)
    backend = open_model(tmp_path / "m.onnx")
    assert isinstance(backend.signature, Signature) and backend.signature.fixed_length == 12
    assert backend.signature.max_sequence == 12
    calibration = load_calibration(backend, write_text(tmp_path / "text.txt", 60))
    assert calibration is not None
    (feed, *_) = calibration.fit
    assert feed["input_ids"].shape[1] == 12 and 0 < feed["attention_mask"].mean() < 1
    assert not feed["input_ids"][feed["attention_mask"] == 0].any()
    settings = lowrank.Settings(calib=str(tmp_path / "text.txt"))
    report = lowrank.compress(tmp_path / "m.onnx", 0.6, output=tmp_path / "run", settings=settings, latency=False)
    assert not report.problems and report.quality is not None


@pytest.mark.parametrize("masked", [True, False])
def test_padding_that_counts_is_said(masked: bool, tmp_path: Path) -> None:
    model = texts_model(12)
    if not masked:
        model.graph.node[1].input[0] = "input_ids"
        del model.graph.input[1]
    onnx.save(model, tmp_path / "m.onnx")
    write_tokenizer(tmp_path)
    calibration = load_calibration(open_model(tmp_path / "m.onnx"), write_text(tmp_path / "text.txt", 60))
    assert calibration is not None
    assert any("12 tokens and no attention_mask" in note for note in calibration.notes) != masked


def test_a_folder_of_arrays_holds_samples_of_unlike_length(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for length in (2, 5, 9):
        np.savez(folder / f"{length}.npz", x=RNG.standard_normal((7, length, IN)).astype(np.float32))
    backend = opened(products(1), tmp_path / "m.onnx")
    calibration = load_calibration(backend, folder)
    assert calibration is not None and calibration.provenance["samples"] == 21
    folds = (calibration.fit, calibration.heldout, calibration.report)
    assert [sum(len(feed["x"]) for feed in fold) for fold in folds] == [16, 3, 2]
    assert {feed["x"].shape[1] for feed in calibration.fit} == {2, 5, 9}
    settings = lowrank.Settings(calib=str(folder), targets=("all",))
    report = lowrank.compress(tmp_path / "m.onnx", 0.6, output=tmp_path / "run", settings=settings, latency=False)
    assert not report.problems and report.error.relative is not None and report.error.relative < 0.9


def test_what_is_no_such_folder_or_file_says_what_to_do(tmp_path: Path) -> None:
    backend = opened(products("batch"), tmp_path / "m.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"without \.npz files"):
        load_calibration(backend, tmp_path / "empty")
    np.savez(tmp_path / "odd.npz", x=np.array([np.zeros((2, IN)), np.zeros((3, IN))], dtype=object))
    with pytest.raises(CalibrationError, match="an .npz for each length, and give the folder"):
        load_calibration(backend, tmp_path / "odd.npz")
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "a.npz", x=FLOATS)
    np.savez(other / "b.npz", z=FLOATS)
    with pytest.raises(CalibrationError, match=r"b\.npz has no array x"):
        load_calibration(backend, other)
