"""ONNX in, ONNX out: every way to apply a constant, what is left alone, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import Replacement, made, read, two_factors, write_text, write_tokenizer
from onnx import TensorProto, helper, numpy_helper
from onnx_builders import GOOD, IN, argument, floats, init, matmul_right, model, node, weight

import lowrank
from lowrank.backends import open_model
from lowrank.backends.onnx import OnnxBackend
from lowrank.backends.onnx.load import load_model
from lowrank.core.analysis import Folds
from lowrank.core.truncation.directions import directions
from lowrank.core.truncation.factors import Factors
from lowrank.core.truncation.gram import Gram
from lowrank.core.truncation.spatial import SpatialFactors, spatial_directions, spatial_matrix
from lowrank.core.weight_analysis import analyze_weight
from lowrank.errors import LowRankError, UnsupportedModel


def opened(name: str, folder: Path) -> tuple[OnnxBackend, dict[str, np.ndarray]]:
    made, feed = GOOD[name]()
    onnx.save(made, folder / "m.onnx")
    backend = open_model(folder / "m.onnx")
    assert isinstance(backend, OnnxBackend)
    return backend, feed


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(path).run(None, feed)[0]


@pytest.mark.parametrize("name", GOOD)
def test_full_rank_changes_nothing_and_any_rank_is_the_product(name: str, tmp_path: Path) -> None:
    backend, feed = opened(name, tmp_path)
    assert backend.weights and not backend.skips
    tolerance = 2e-2 if any(w.dtype == "float16" for w in backend.weights) else 2e-5
    dense = run(tmp_path / "m.onnx", feed)
    for rank in (None, 3):
        chosen = {w.name: two_factors(backend.read(w.name), rank or w.full_rank) for w in backend.weights}
        small = backend.rewrite(chosen)
        small.write_onnx(tmp_path / "small.onnx")
        load_model(tmp_path / "small.onnx")
        found = run(tmp_path / "small.onnx", feed)
        scale = np.abs(dense).max()
        wanted = dense if rank is None else small.reference()(feed)[small.signature.output]
        assert np.abs(found - wanted).max() <= tolerance * scale
        if rank == 3:
            assert np.abs(found - dense).max() > 1e-4 * scale
            assert small.params < backend.params
    before, after = (onnx.load(tmp_path / f) for f in ("m.onnx", "small.onnx"))
    assert after.graph.input[0].name == "x"
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    assert after.producer_name == "somebody" and after.metadata_props[0].value == "kept"
    assert after.opset_import[0].version == before.opset_import[0].version and after.ir_version == before.ir_version


@pytest.mark.parametrize("name", ["conv_3x3", "conv_same"])
def test_spatial_factors(name: str, tmp_path: Path) -> None:
    backend, feed = opened(name, tmp_path)
    (w,) = backend.weights
    matrix = backend.read(w.name)
    dense = run(tmp_path / "m.onnx", feed)
    grams: list[Gram] = []
    with backend.watching({w.name: "input"}) as see:
        see(feed, lambda _, gram: grams.append(made(gram)))
    gram = sum(grams[1:], grams[0])
    analysis = analyze_weight(w, matrix, Folds(gram, gram))
    assert "spatial" in analysis.curves
    for rank in (4, 9):
        chosen = spatial_directions(w, matrix, gram)
        factors = chosen.truncate(spatial_matrix(w, matrix), rank)
        small = backend.rewrite({w.name: Replacement("spatial", SpatialFactors(factors.left, factors.right))})
        found = small.run(feed)
        assert np.allclose(found, small.reference()(feed)[small.signature.output], atol=1e-4)
        # Without the bias, the predicted error is the real one.
        plain = dense - backend.model.graph.initializers["b"].const_value.numpy()[:, None, None]
        lost = np.square(found - dense).sum() / np.square(plain).sum()
        assert lost == pytest.approx(analysis.curves["spatial"][rank], rel=1e-3)


@pytest.mark.parametrize(
    "name", ["matmul_right", "matmul_left", "gemm_111.52.0True", "conv_3x3", "conv_groups", "einsum"]
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_grams_are_the_error(name: str, side: str, tmp_path: Path) -> None:
    """The tail of the metric is the error of the output, for every operator: so the moments are the right ones."""
    name = name if name in GOOD else "gemm_110.52.0True"
    backend, feed = opened(name, tmp_path)
    (w,) = backend.weights
    grams: list[Gram] = []
    with backend.watching({w.name: side}) as see:  # type: ignore[dict-item]
        see(feed, lambda _, gram: grams.append(made(gram)))
    matrix = backend.read(w.name)
    chosen = directions(matrix, sum(grams[1:], grams[0]))
    small = backend.rewrite({w.name: Replacement("two_factor", chosen.truncate(matrix, 2))})
    zero = backend.rewrite({w.name: Replacement("two_factor", two_factors(np.zeros_like(matrix), 1).factors)})
    dense, bias = backend.run(feed), zero.run(feed)
    lost = np.square(small.run(feed) - dense).sum() / np.square(dense - bias).sum()
    energies = chosen.energies if chosen.energies.ndim == 1 else chosen.energies.sum(0)
    assert lost == pytest.approx(energies[2:].sum() / energies.sum(), rel=1e-3)


def test_ties_are_one_weight_and_stored_once(tmp_path: Path) -> None:
    for name in ("tied", "tied_copy", "shared", "shared_turned"):
        backend, _ = opened(name, tmp_path)
        (w,) = backend.weights
        assert len(w.layers) == 2
        small = backend.rewrite({w.name: two_factors(backend.read(w.name), 2)})
        small.write_onnx(tmp_path / "small.onnx")
        held = sum(np.prod(i.dims) for i in onnx.load(tmp_path / "small.onnx").graph.initializer)
        assert held == 2 * (w.rows + w.cols)


def test_what_is_left_alone_has_a_reason(tmp_path: Path) -> None:
    scale, zero = init(np.float32(0.1), "s"), init(np.int8(0), "z")
    quantised = init(np.ones((IN, IN), np.int8), "q")
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("MatMul", ["x", "d"], "a"),
        node("MatMul", ["a", "w"], "b"),
        node("Add", ["b", "plus"], "c"),
        node("Mul", ["v", "v"], "vv"),
        node("MatMul", ["c", "vv"], "y"),
    ]
    square = weight(IN, IN)
    made = model(nodes, [scale, zero, quantised, init(square, "w"), init(square, "plus"), init(square, "v")], (IN, IN))
    onnx.save(made, tmp_path / "m.onnx")
    backend = open_model(tmp_path / "m.onnx")
    assert [w.name for w in backend.weights] == ["w"]
    reasons = {s.name: s.reason for s in backend.skips}
    assert "quantised" in reasons["q"] and "operand of Add" in reasons["plus"] and "computed by Mul" in reasons["v"]


def test_deep_graphs_are_walked_without_recursion(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x" if i == 0 else f"h{i}"], f"h{i + 1}") for i in range(3000)]
    onnx.save(model([*nodes, node("MatMul", ["h3000", "w"], "y")], [init(weight(), "w")]), tmp_path / "m.onnx")
    assert [w.name for w in open_model(tmp_path / "m.onnx").weights] == ["w"]


def test_a_weight_in_a_call_says_what_to_do(tmp_path: Path) -> None:
    onnx.save(argument()[0], tmp_path / "m.onnx")
    backend = open_model(tmp_path / "m.onnx")
    assert not backend.weights and "inline functions first" in backend.skips[0].reason


def test_half_precision_goes_all_the_way(tmp_path: Path) -> None:
    onnx.save(GOOD["half"]()[0], tmp_path / "m.onnx")
    settings = lowrank.Settings(calib="none", targets=("all",))
    report = lowrank.compress(tmp_path / "m.onnx", 0.6, output=tmp_path / "run", settings=settings)
    assert not report.problems and report.parity is not None and report.latency is not None
    assert onnx.load(tmp_path / "run/model.onnx").graph.initializer[0].data_type == TensorProto.FLOAT16


def test_a_weight_that_callers_may_see_or_change_stays(tmp_path: Path) -> None:
    made, _ = matmul_right()
    made.graph.output.append(helper.make_tensor_value_info("w", 1, [IN, 16]))
    onnx.save(made, tmp_path / "m.onnx")
    backend = open_model(tmp_path / "m.onnx")
    assert not backend.weights and "input or an output" in backend.skips[0].reason


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(matmul_right()[0], tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx")
    with pytest.raises(UnsupportedModel, match="then quantise"):
        open_model(tmp_path / "q.onnx")


def test_external_data_comes_and_goes_beside_the_graph(tmp_path: Path) -> None:
    made, feed = matmul_right()
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    backend = open_model(tmp_path / "m.onnx")
    assert isinstance(backend, OnnxBackend) and backend.external
    (w,) = backend.weights
    small = backend.rewrite({w.name: two_factors(backend.read(w.name), 6)})
    small.write_onnx(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").stat().st_size > 0
    assert np.allclose(run(tmp_path / "small.onnx", feed), small.reference()(feed)[small.signature.output], atol=1e-5)


def broken(folder: Path) -> dict[str, str]:
    """Damaged files by name, each with what the message must say."""
    made, _ = matmul_right()
    data = made.SerializeToString()
    (folder / "cut.onnx").write_bytes(data[: len(data) // 2])
    (folder / "empty.onnx").touch()
    (folder / "text.onnx").write_text("not a model")
    onnx.save(made, folder / "gone.onnx", save_as_external_data=True, location="gone.bin", size_threshold=0)
    (folder / "gone.bin").unlink()
    made, _ = matmul_right()
    onnx.save(made, folder / "short.onnx", save_as_external_data=True, location="short.bin", size_threshold=0)
    (folder / "short.bin").write_bytes(b"12")
    for name, location in (("outside", "../secret"), ("absolute", "/etc/passwd")):
        copy = onnx.ModelProto.FromString(data)
        (tensor,) = copy.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / f"{name}.onnx").write_bytes(copy.SerializeToString())
    cyclic = model([node("MatMul", ["y", "w"], "a"), node("Relu", ["a"], "y")], [init(weight(IN, IN), "w")])
    (folder / "cyclic.onnx").write_bytes(cyclic.SerializeToString())
    missing = model([node("MatMul", ["x", "nothing"], "y")], [])
    (folder / "missing.onnx").write_bytes(missing.SerializeToString())
    future, _ = matmul_right()
    future.opset_import[0].version = 999
    (folder / "future.onnx").write_bytes(future.SerializeToString())
    return {
        "cut": "cut short",
        "empty": "no ONNX file",
        "text": "no ONNX file",
        "gone": "is not there",
        "short": "cut short",
        "outside": "never read",
        "absolute": "never read",
        "cyclic": "no valid graph",
        "missing": "no valid graph",
        "future": "operator set 999",
    }


def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    monkeypatch.chdir(tmp_path)
    for name, message in broken(folder).items():
        before = sorted(tmp_path.rglob("*"))
        outcome = cli("compress", folder / f"{name}.onnx", "--budget", 0.5)
        assert outcome.code == 1 and message in outcome.err, (name, outcome.err)
        assert outcome.err.count("\n") == 1 and not outcome.out
        assert sorted(tmp_path.rglob("*")) == before


def blocks(folder: Path) -> Path:
    """Two tokens-in layers and a head, as a text model has them."""
    nodes = [
        node("Gather", ["embed", "input_ids"], "e"),
        node("MatMul", ["e", "layers.0.up.weight"], "u"),
        node("Relu", ["u"], "r"),
        node("MatMul", ["r", "layers.0.down.weight"], "last_hidden_state"),
    ]
    initializers = [
        init(weight(24, 16, 1) * 4, "embed"),
        init(weight(16, 40, 2), "layers.0.up.weight"),
        init(weight(40, 16, 3), "layers.0.down.weight"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", 7, ("batch", "sequence"))]
    outputs = [helper.make_tensor_value_info("last_hidden_state", 1, ("batch", "sequence", 16))]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def test_text_and_a_tokenizer_calibrate_a_graph(tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = blocks(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    write_text(tmp_path / "text.txt")
    arguments = ["--calib", "text.txt", "--tokenizer", "tokenizer/tokenizer.json"]
    assert cli("analyze", path, *arguments).code == 0
    found = read(tmp_path / "lowrank-run/analysis.json")
    assert [w["metric"] for w in found["weights"]] == ["activation"] * 2
    assert all(w["sensitivity"] not in (0, 1) for w in found["weights"])
    outcome = cli("compress", "--budget", "0.5")
    assert outcome.code == 0, outcome.err
    report = read(tmp_path / "lowrank-run/report.json")
    assert report["targets"]["keep_ratio"] <= 0.5 and report["parity"]["relative"] < 1e-4
    assert report["quality"]["fidelity"] > 0.1 and report["latency"]["speedup"] > 0
    assert (tmp_path / "lowrank-run/model/tokenizer.json").is_file()
    assert cli("evaluate").code == 0
    again = cli("compress", tmp_path / "lowrank-run/model.onnx", "--budget", "0.5", "-o", tmp_path / "x")
    assert again.code == 1 and "compressed already" in again.err
    with pytest.raises(LowRankError, match="onnxruntime"):
        lowrank.load(tmp_path / "lowrank-run")


def test_torch_and_a_graph_agree_on_what_data_shows(tmp_path: Path) -> None:
    """The same model in both formats, calibrated on the same data: the same Grams and sensitivities."""
    from architectures import build

    build("bert").save_pretrained(tmp_path / "bert")
    lowrank.export(tmp_path / "bert", tmp_path / "onnx")
    ids = np.random.default_rng(0).integers(1, 64, (60, 9))
    ones = np.ones_like(ids)
    ones[::3, 5:] = 0
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=ones, token_type_ids=0 * ids)
    settings = lowrank.Settings(calib=str(tmp_path / "c.npz"), targets=("projections", "embeddings"))
    a, b = (lowrank.analyze(tmp_path / p, settings=settings) for p in ("bert", "onnx/model.onnx"))
    assert {r.weight.name for r in a.weights} == {r.weight.name for r in b.weights}
    # Only torch has gradients, and so another metric for the weights that they help.
    left_out = ("position", "type", *a.curvatures)
    compared = [r for r in a.weights if not any(part in r.weight.name for part in left_out)]
    assert compared
    for record in compared:
        other = b[record.weight.name]
        assert np.allclose(record.error_curve, other.error_curve, atol=1e-5)
        assert record.sensitivity == pytest.approx(other.sensitivity, rel=1e-2)


def test_no_torch_in_the_process(tmp_path: Path) -> None:
    path = blocks(tmp_path)
    write_tokenizer(tmp_path / "t")
    write_text(tmp_path / "text.txt", 20)
    code = (
        "import sys, lowrank\n"
        f"s = lowrank.Settings(calib={str(tmp_path / 'text.txt')!r})\n"
        f"o = lowrank.Opening(tokenizer={str(tmp_path / 't/tokenizer.json')!r})\n"
        f"lowrank.compress({str(path)!r}, 0.5, output={str(tmp_path / 'run')!r}, settings=s, opening=o)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """A graph whose numbers do not fit into one protobuf message: mapped in, and written back beside the graph."""
    wide, small = 11500, 48
    with (tmp_path / "big.bin").open("wb") as file:
        for seed in range(5):
            rng = np.random.default_rng(seed)
            left, right = rng.standard_normal((wide, 4)), rng.standard_normal((4, wide))
            for rows in np.array_split(left, 23):
                (rows @ right / wide).astype(np.float32).tofile(file)
        np.ones((small, small), np.float32).tofile(file)
    size = 4 * wide * wide
    assert 5 * size > 1 << 31

    def external(name: str, dims: list[int], offset: int, length: int) -> onnx.TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "big.bin"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    names = [f"layers.{i}.weight" for i in range(5)]
    initializers = [external(name, [wide, wide], i * size, size) for i, name in enumerate(names)]
    nodes = [
        node("MatMul", ["x" if i == 0 else f"h{i}", n], f"h{i + 1}" if i < 4 else "y") for i, n in enumerate(names)
    ]
    (tmp_path / "big.onnx").write_bytes(model(nodes, initializers, ("batch", wide)).SerializeToString())
    backend = open_model(tmp_path / "big.onnx")
    assert isinstance(backend, OnnxBackend) and backend.nbytes > 1 << 31
    rng = np.random.default_rng(0)
    factors = Factors(rng.standard_normal((wide, 4)), rng.standard_normal((4, wide)) / wide)
    small_one = backend.rewrite({names[2]: Replacement("two_factor", factors)})
    small_one.write_onnx(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size > 4 * size
    feed = {"x": floats(1, wide)["x"]}
    weights = np.memmap(tmp_path / "big.bin", np.float32, shape=(5, wide, wide), mode="r")
    y = feed["x"]
    for i in range(5):
        y = y @ weights[i] if i != 2 else (y @ factors.right.T.astype("f4")) @ factors.left.T.astype("f4")
    found = run(tmp_path / "out.onnx", feed)
    assert np.abs(found - y).max() <= 1e-3 * np.abs(y).max()
    assert numpy_helper.to_array(init(np.zeros(1), "z")).size == 1
