"""Profiles: graphs for any runtime, and graphs with ONNX Runtime's own operators, with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from architectures import build
from builders import two_factors, write_text

from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.backends.ort_session import typed
from lowrank.backends.torch import ModuleBackend
from lowrank.edge.counts import fused_counts
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Target
from lowrank.errors import ExportError
from lowrank.evaluate.parity import check_parity


def factored(name: str) -> tuple[ModuleBackend, ModuleBackend]:
    dense = open_model(build(name))
    assert isinstance(dense, ModuleBackend)
    wanted = [w for w in dense.weights if w.role == "projection" and w.is_linear]
    return dense, dense.rewrite({w.name: two_factors(dense.read(w.name), 4) for w in wanted})


def write_onnx(backend: ModuleBackend, path: Path, profile: Any = "portable") -> None:
    signature = backend.signature
    assert isinstance(signature, Signature)
    backend.write_onnx(path)
    fit_file(path, Target(profile=profile), signature)


def domains(path: Path) -> set[str]:
    return {node.domain for node in onnx.load(str(path)).graph.node}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "whisper"])
@pytest.mark.slow_but("bert")
def test_a_factored_model_is_fused_as_far_as_the_dense_one(name: str, tmp_path: Path) -> None:
    dense, small = factored(name)
    write_onnx(dense, tmp_path / "dense.onnx", profile="ort")
    write_onnx(small, tmp_path / "small.onnx", profile="ort")
    write_onnx(small, tmp_path / "portable.onnx")
    assert "com.microsoft" in domains(tmp_path / "small.onnx")
    assert domains(tmp_path / "portable.onnx") == {""}
    portable = onnx.load(str(tmp_path / "portable.onnx"))
    assert [each.version <= 20 for each in portable.opset_import] == [True] and portable.ir_version <= 9
    check_parity(small, tmp_path / "small.onnx")
    after, before = fused_counts(tmp_path / "small.onnx"), fused_counts(tmp_path / "dense.onnx")
    assert after["attention"] > 0 and after == before
    assert not any("Skip" in node.op_type for node in onnx.load(str(tmp_path / "small.onnx")).graph.node)


@pytest.mark.slow
def test_the_profile_is_remembered(
    cli: Any, tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "text.txt", 60)
    done = cli("compress", bert_folder, "--budget", 0.5, "--calib", text, "--profile", "ort", "-o", "run")
    assert done.code == 0, done.err

    def graph() -> dict[str, Any]:
        assert "com.microsoft" in domains(tmp_path / "run" / "model.onnx")
        return json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["onnx"]

    first = graph()
    assert first["profile"] == "ort" and first["fused"]["attention"] == first["dense_fused"]["attention"] > 0
    assert cli("heal", "run", "--steps", 40, "--no-latency").code == 0
    assert graph()["profile"] == "ort"
    assert cli("evaluate", "-o", "run").code == 0
    assert graph() == first


def test_a_graph_that_came_as_onnx_is_fused_too(cli: Any, tmp_path: Path, bert_folder: Path) -> None:
    assert cli("export", bert_folder, "-o", tmp_path / "dense").code == 0
    assert fused_counts(tmp_path / "dense" / "model.onnx")["attention"] == 0
    source, run = tmp_path / "dense" / "model.onnx", tmp_path / "run"
    options = ("--calib", "none", "--no-latency", "-o", run)
    done = cli("compress", source, "--budget", 0.5, "--profile", "ort", *options)
    assert done.code == 0, done.err
    assert fused_counts(run / "model.onnx")["attention"] > 0
    assert cli("export", bert_folder, "-o", tmp_path / "fused", "--profile", "ort").code == 0
    assert fused_counts(tmp_path / "fused" / "model.onnx")["attention"] > 0


def test_a_runtime_that_is_too_old_is_named(cli: Any, tmp_path: Path, bert_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ort, "__version__", "1.21.0")
    Target().check()
    with pytest.raises(ExportError, match="1.22.1.*1.21.0.*--profile portable"):
        Target(profile="ort").check()
    refused = cli("compress", bert_folder, "--budget", 0.5, "--profile", "ort", "-o", tmp_path / "run")
    assert refused.code == 1 and "--profile portable" in refused.err and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleBackend, Path]:
    """A factored model, and its files by profile."""
    folder = tmp_path_factory.mktemp("written")
    _, small = factored("bert")
    for profile in ("portable", "ort"):
        write_onnx(small, folder / f"{profile}.onnx", profile=profile)
    return small, folder


def optimised_by_onnxscript(source: Path, target: Path) -> None:
    import onnxscript.optimizer

    model = ir.load(source)
    onnxscript.optimizer.optimize(model)
    ir.save(model, target)


def slimmed(source: Path, target: Path) -> None:
    onnxslim: Any = pytest.importorskip("onnxslim")
    onnxslim.slim(str(source), str(target))


def simplified(source: Path, target: Path) -> None:
    onnxsim: Any = pytest.importorskip("onnxsim")
    model, right = onnxsim.simplify(str(source))
    assert right
    onnx.save(model, str(target))


@pytest.mark.parametrize("profile", ["portable", "ort"])
@pytest.mark.parametrize("tool", [optimised_by_onnxscript, slimmed, simplified])
def test_pairs_survive_other_tools(
    tool: Any, profile: str, tmp_path: Path, written: tuple[ModuleBackend, Path]
) -> None:
    small, folder = written
    shutil.copyfile(folder / f"{profile}.onnx", tmp_path / "model.onnx")
    tool(tmp_path / "model.onnx", tmp_path / "after.onnx")
    assert products(tmp_path / "after.onnx") == products(tmp_path / "model.onnx")
    assert (tmp_path / "after.onnx").stat().st_size < 1.05 * (tmp_path / "model.onnx").stat().st_size
    same_numbers(small, tmp_path / "model.onnx", tmp_path / "after.onnx")


@pytest.mark.parametrize("profile", ["portable", "ort"])
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_pairs_survive_the_runtime(
    level: str, profile: str, tmp_path: Path, written: tuple[ModuleBackend, Path]
) -> None:
    small, folder = written
    shutil.copyfile(folder / f"{profile}.onnx", tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "after.onnx")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert products(tmp_path / "after.onnx") == products(tmp_path / "model.onnx")
    same_numbers(small, tmp_path / "model.onnx", tmp_path / "after.onnx")


def products(path: Path) -> int:
    """Products with a constant matrix."""
    graph = onnx.load(str(path)).graph
    matrices = {each.name for each in graph.initializer if len(each.dims) == 2}
    kinds = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
    return sum(node.op_type in kinds and bool(matrices & set(node.input)) for node in graph.node)


def same_numbers(backend: ModuleBackend, one: Path, other: Path) -> None:
    signature = backend.signature
    assert isinstance(signature, Signature)
    sessions = [ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (one, other)]
    for size in ((1, 1), (3, 9)):
        feed = signature.example(*size, padded=size[0] > 1)
        keep = feed["attention_mask"] == 1
        a, b = (session.run([signature.output], typed(session, feed))[0][keep] for session in sessions)
        np.testing.assert_allclose(a, b, atol=1e-5)
