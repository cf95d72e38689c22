"""Fewer bits in the graph: every architecture, padded batches, tied tables, and what evenness and refits gain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from architectures import build
from builders import two_factors, write_text
from onnx import numpy_helper
from onnx_builders import model, node

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Feed, Signature
from lowrank.backends.ort_session import typed
from lowrank.backends.torch import ModuleBackend
from lowrank.edge import quantize
from lowrank.edge.graph_file import fit_file
from lowrank.edge.integer import weights_in_bits
from lowrank.edge.target import Dtype, Profile, Target
from lowrank.errors import ExportError
from lowrank.evaluate.graph import open_graph

TOLERANCE = {"float16": 2e-3, "int8": 5e-2, "int4": 0.4, "int3": 0.6, "int2": 1.0, "nbits4": 0.4}


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "LEAST", 100)
    monkeypatch.setattr("lowrank.edge.half.LEAST", 100)


def factored(name: str, rank: int = 16) -> ModuleBackend:
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend)
    wanted = [w for w in dense.weights if w.role == "projection" and w.is_linear]
    return dense.rewrite({w.name: two_factors(dense.read(w.name), rank) for w in wanted})


def signature_of(backend: ModuleBackend) -> Signature:
    assert isinstance(backend.signature, Signature)
    return backend.signature


def outputs(path: Path, signature: Signature, feeds: list[Feed]) -> list[np.ndarray]:
    session = open_graph(path)
    return [session.run([signature.output], typed(session, feed))[0] for feed in feeds]


def difference(path: Path, backend: ModuleBackend, feeds: list[Feed]) -> float:
    """Relative error of a file over some inputs; padding does not count."""
    found, total = 0.0, 0.0
    for ours, theirs, feed in zip(
        outputs(path, signature_of(backend), feeds), map(backend.run, feeds), feeds, strict=True
    ):
        mask = feed.get("attention_mask")
        keep = mask == 1 if mask is not None and mask.shape == ours.shape[:2] else np.ones(ours.shape[:1], bool)
        found += float(np.square(ours[keep] - theirs[keep]).sum())
        total += float(np.square(theirs[keep]).sum())
    return (found / total) ** 0.5


def bytes_of(path: Path) -> int:
    """Of all tensors; a graph of a tiny model is larger than those."""
    return sum(len(tensor.raw_data) for tensor in onnx.load(str(path)).graph.initializer)


def floats_left(path: Path) -> list[str]:
    graph = onnx.load(str(path)).graph
    return [
        i.name
        for i in graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) == 2 and min(i.dims) > 1 and np.prod(i.dims) >= 1000
    ]


TARGETS: list[tuple[Profile, Dtype]] = [
    ("portable", "float16"),
    ("portable", "int8"),
    ("ort", "int8"),
    ("portable", "int4"),
    ("portable", "int3"),
    ("portable", "int2"),
    ("qdq", "int8"),
    ("qdq-signed", "int8"),
    ("qdq", "int4"),
    ("ort", "nbits4"),
    ("ort", "int3"),
    ("ort", "int2"),
]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "whisper"])
@pytest.mark.slow_but("bert")
def test_every_architecture(name: str, tmp_path: Path) -> None:
    backend, exact = factored(name), tmp_path / "exact.onnx"
    signature = signature_of(backend)
    backend.write_onnx(exact)
    feeds: list[Feed] = [signature.example(4, 12, seed) for seed in range(8)]
    tests: list[Feed] = [signature.example(b, s, 9, padded=b > 1) for b, s in ((1, 1), (1, 16), (3, 9))]
    for profile, dtype in TARGETS:
        path = tmp_path / "model.onnx"
        shutil.copyfile(exact, path)
        target = Target(profile=profile, dtype=dtype)
        notes = fit_file(path, target, signature, feeds if target.is_fixed else feeds[:3])
        # Convolutions have no operator for codes here; nothing else is left out.
        assert all("conv" in note for note in notes) and (not notes or name in ("vit", "whisper"))
        assert difference(path, backend, tests) < TOLERANCE[dtype], dtype
        assert bytes_of(path) < 0.7 * bytes_of(exact)
        domains = {node.domain for node in onnx.load(str(path)).graph.node}
        assert domains == {""} if profile != "ort" else "com.microsoft" in domains


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_all_large_matrices_are_codes(name: str, tmp_path: Path) -> None:
    backend, exact = factored(name), tmp_path / "exact.onnx"
    backend.write_onnx(exact)
    for profile, dtype in (("portable", "int8"), ("portable", "int4"), ("portable", "int3"), ("ort", "nbits4")):
        path = tmp_path / f"{dtype}.onnx"
        shutil.copyfile(exact, path)
        fit_file(path, Target(profile=profile, dtype=dtype), signature_of(backend))  # pyright: ignore[reportArgumentType]
        assert floats_left(path) == []


def test_the_runtime_runs_one_operator_a_product(tmp_path: Path) -> None:
    backend, path = factored("bert"), tmp_path / "model.onnx"
    backend.write_onnx(path)
    fit_file(path, Target(profile="ort", dtype="int8"), signature_of(backend))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    before = [node.op_type for node in onnx.load(str(path)).graph.node]
    after = [node.op_type for node in onnx.load(str(tmp_path / "seen.onnx")).graph.node]
    fused = after.count("DynamicQuantizeMatMul") + after.count("MatMulIntegerToFloat")
    assert fused == before.count("MatMulInteger") > 10 and "MatMulInteger" not in after


@pytest.mark.parametrize("profile", ["qdq", "qdq-signed"])
def test_ranges_that_are_fixed_are_operators_of_eight_bits(profile: Any, tmp_path: Path) -> None:
    backend, path = factored("bert"), tmp_path / "model.onnx"
    signature = signature_of(backend)
    backend.write_onnx(path)
    feeds: list[Feed] = [signature.example(16, 9, seed) for seed in range(2)]
    fit_file(path, Target(profile=profile, dtype="int8"), signature, feeds)
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & set(kinds) and kinds.count("QuantizeLinear") > 10
    ranges = {key: each for key, each in weights_in_bits(path).items() if each is not None}
    assert len(ranges) > 10 and all(each.signed == (profile == "qdq-signed") for each in ranges.values())
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    after = [node.op_type for node in onnx.load(str(tmp_path / "seen.onnx")).graph.node]
    # A product whose result is rounded next gives codes itself.
    fused = after.count("MatMulIntegerToFloat") + after.count("QLinearMatMul")
    # The runtime has no such operator for some products of codes that all have a sign.
    assert fused == len(ranges) if profile == "qdq" else fused > len(ranges) / 2


def test_too_few_samples_fix_no_range(tmp_path: Path) -> None:
    backend, path = factored("bert"), tmp_path / "model.onnx"
    signature = signature_of(backend)
    backend.write_onnx(path)
    with pytest.raises(ExportError, match="needs 32 samples, and there are 12"):
        fit_file(path, Target(profile="qdq", dtype="int8"), signature, [signature.example(12, 9)])
    # For its time and its bytes alone any range will do.
    fit_file(path, Target(profile="qdq", dtype="int8"), signature, plain=True)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(path)).graph.node}


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    backend, path = factored("gpt2"), tmp_path / "model.onnx"
    backend.write_onnx(path)
    fit_file(path, Target(dtype="int8"), signature_of(backend))
    table = next(w for w in backend.weights if w.role == "embedding" and len(w.layers) > 1)
    shapes = [sorted(i.dims) for i in onnx.load(str(path)).graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert shapes.count(sorted(table.shape)) == 1


@pytest.mark.parametrize(
    ("profile", "dtype"),
    [
        ("portable", "int8"),
        ("qdq", "int8"),
        ("portable", "int4"),
        ("portable", "int3"),
        ("portable", "int2"),
        ("ort", "nbits4"),
    ],
)
def test_evenness_refit_and_data_gain(profile: Any, dtype: Any, tmp_path: Path) -> None:
    backend = factored("bert")
    signature = signature_of(backend)
    feeds: list[Feed] = [signature.example(16, 16, seed) for seed in range(8)]
    found: list[float] = []
    for plain in (True, False):
        path = tmp_path / f"{plain}.onnx"
        backend.write_onnx(path)
        quantize.quantize_file(path, Target(profile=profile, dtype=dtype), signature, feeds, plain)
        found.append(difference(path, backend, [signature.example(8, 16, 99)]))
    assert found[1] < found[0]


@pytest.mark.slow
def test_from_the_command_line(cli: Any, tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "text.txt", 60)
    done = cli("compress", bert_folder, "--budget", 0.5, "--calib", text, "--quantize", "int8", "-o", "run")
    assert done.code == 0, done.err

    def report() -> dict[str, Any]:
        return json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))

    first = report()
    assert first["onnx"]["dtype"] == "int8" and 0 < first["onnx"]["rounding_error"] < 0.05
    # What is rounded was exact before, and what is told of quality is told of the rounded file.
    assert first["parity"]["max_abs"] < 1e-4
    assert first["latency"]["dense_rounded_ms"] > 0
    assert floats_left(tmp_path / "run" / "model.onnx") == []
    assert cli("evaluate", "-o", "run").code == 0
    again = report()
    # What is measured again is the same, on every set.
    pairs = [(again["quality"], first["quality"])]
    pairs.append((again["quality"].pop("dense_rounded"), first["quality"].pop("dense_rounded")))
    for nested in ("sets", "outputs"):
        pairs += [pair for a, b in pairs for pair in zip(a.pop(nested, ()), b.pop(nested, ()), strict=True)]
    assert all(ours == pytest.approx(theirs) for ours, theirs in pairs) and again["parity"] == first["parity"]
    assert pairs[1][0]["dtype"] == "int8"
    assert cli("heal", "run", "--steps", 40, "--no-latency").code == 0
    assert report()["onnx"]["dtype"] == "int8" and floats_left(tmp_path / "run" / "model.onnx") == []
    # Training leaves out what is too small, and only this test rounds it.
    assert any("matrices were trained in 32 bits" in note for note in report()["notes"])
    refused = cli("compress", tmp_path / "run" / "model.onnx", "--budget", 0.5, "-o", "other")
    assert refused.code == 1


def test_four_bits_are_for_one_runtime(cli: Any, tmp_path: Path, bert_folder: Path) -> None:
    out = tmp_path / "dense"
    refused = cli("export", bert_folder, "-o", out, "--quantize", "nbits4", "--profile", "portable")
    assert refused.code == 1 and "--profile ort" in refused.err and not out.exists()
    assert cli("export", bert_folder, "-o", out, "--quantize", "nbits4").code == 0
    kinds = [node.op_type for node in onnx.load(str(out / "model.onnx")).graph.node]
    assert "MatMulNBits" in kinds and "GatherBlockQuantized" in kinds


def test_a_quantised_model_is_refused(tmp_path: Path, cli: Any, bert_folder: Path) -> None:
    assert cli("export", bert_folder, "-o", tmp_path / "int8", "--quantize", "int8").code == 0
    with pytest.raises(lowrank.LowRankError, match="quantised"):
        lowrank.compress(tmp_path / "int8" / "model.onnx", 0.5, output=tmp_path / "run")
    half = cli("export", bert_folder, "-o", tmp_path / "half", "--quantize", "fp16")
    assert half.code == 0
    kinds = {
        i.data_type
        for i in onnx.load(str(tmp_path / "half" / "model.onnx")).graph.initializer
        if np.prod(i.dims) >= 100
    }
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("opset", [12, 13])
def test_four_bits_in_an_old_graph(opset: int, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "old.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), str(path))
    signature = open_model(str(path)).signature
    assert isinstance(signature, Signature)
    if opset < 13:
        with pytest.raises(lowrank.LowRankError, match="operator set 12.*--quantize int8"):
            fit_file(path, Target(dtype="int4"), signature)
        return
    fit_file(path, Target(dtype="int4"), signature)
    x = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.linalg.norm(found - x @ weight) < 0.12 * np.linalg.norm(x @ weight)


def integers_in(path: Path) -> int:
    """Nodes of a graph that multiply integers."""
    return sum(node.op_type in ("MatMulInteger", "DequantizeLinear") for node in onnx.load(path).graph.node)


def test_a_graph_is_rounded_by_export(tmp_path: Path, cli) -> None:
    wide = np.random.default_rng(0)
    held = [numpy_helper.from_array(wide.standard_normal((64, 64)).astype(np.float32), n) for n in ("w", "v")]
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "v"], "y")]
    onnx.save(model(nodes, held, ("batch", 64)), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=wide.standard_normal((64, 64)).astype(np.float32))
    x = wide.standard_normal((8, 64)).astype(np.float32)
    exact = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})[0]
    for more in ((), ("--calib", tmp_path / "x.npz")):
        outcome = cli("export", tmp_path / "m.onnx", "-o", tmp_path / "out", "--quantize", "int8", *more)
        assert outcome.code == 0, outcome.err
        assert integers_in(tmp_path / "out/model.onnx")
        found = ort.InferenceSession(tmp_path / "out/model.onnx").run(None, {"x": x})[0]
        assert 0 < np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)
    run = ("-o", tmp_path / "run", "--calib", tmp_path / "x.npz", "--targets", "all", "--no-timing")
    assert cli("compress", tmp_path / "m.onnx", "--budget", 0.9, *run).code == 0
    outcome = cli("export", tmp_path / "run", "-o", tmp_path / "small", "--quantize", "int8")
    assert outcome.code == 0 and integers_in(tmp_path / "small/model.onnx"), outcome.err
    outcome = cli("export", tmp_path / "m.onnx", "-o", tmp_path / "none")
    assert outcome.code == 1 and "--quantize int8 rounds it" in outcome.err
