"""A file's bytes as the budget: never more, types by weight, and four bits that run on standard operators."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import tiny_bert_folder, write_text

import lowrank
from lowrank.backends import open_model
from lowrank.backends.inputs import Signature
from lowrank.core.rounding.formats import Stored
from lowrank.edge import quantize
from lowrank.edge.graph_file import fit_file
from lowrank.edge.target import Target
from lowrank.evaluate.graph import FileModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> Path:
    """A run of a given size."""
    folder = tmp_path_factory.mktemp("size")
    text = write_text(folder / "text.txt", 60)
    settings = lowrank.Settings(calib=str(text), targets=("projections", "embeddings"))
    lowrank.compress(str(bert_folder), lowrank.Budget.size(75e3), output=folder / "run", settings=settings)
    return folder / "run"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


@pytest.mark.slow
def test_the_file_is_no_larger(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert size_of(run) == report["budget"]["reached"] <= report["budget"]["limit"] == 75e3
    # As large as it may be: a tiny graph's nodes are most of it.
    assert size_of(run) > 0.93 * 75e3
    assert report["onnx"]["dtype"] == "mixed" and report["problems"] == []
    assert report["parity"]["max_abs"] < 1e-4 and 0 < report["onnx"]["rounding_error"] < 0.5
    assert report["latency"]["dense_rounded_ms"] > 0
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    assert {group.get("dtype", "float32") for group in plan["groups"]} - {"float32"}


@pytest.mark.slow
def test_healing_and_measuring_again_keep_the_size(run: Path, cli: Any, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = size_of(run)
    assert cli("heal", tmp_path / "run", "--steps", 10, "--no-timing").code == 0
    assert abs(size_of(tmp_path / "run") - before) <= 64
    assert cli("evaluate", "-o", tmp_path / "run").code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["onnx"]["dtype"] == "mixed" and report["budget"]["reached"] == size_of(tmp_path / "run")


def test_residuals_and_types_by_weight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bert_folder: Path) -> None:
    monkeypatch.setattr(quantize, "LEAST", 100)
    monkeypatch.setattr("lowrank.edge.half.LEAST", 100)
    backend = open_model(str(bert_folder))
    signature = backend.signature
    assert isinstance(signature, Signature)
    backend.write_onnx(tmp_path / "exact.onnx")
    feeds = [signature.example(16, 16, seed) for seed in range(4)]
    name = "encoder.layer.0.intermediate.dense.weight"
    others = {w.name: Stored("float32") for w in backend.weights}
    test = signature.example(4, 16, 9, padded=True)
    exact, found = backend.run(test), dict[str, float]()
    for label, stored in {"int4": Stored("int4"), "beside": Stored("int4", 16), "half": Stored("float16")}.items():
        path = tmp_path / f"{label}.onnx"
        shutil.copyfile(tmp_path / "exact.onnx", path)
        assert fit_file(path, Target(dtype="mixed"), signature, feeds, {**others, name: stored}) == []
        graph = onnx.load(str(path)).graph
        types = {i.name: i.data_type for i in graph.initializer if i.name.startswith(name)}
        assert all(domain == "" for domain in {node.domain for node in graph.node})
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("MatMulInteger") == {"int4": 1, "beside": 3, "half": 0}[label]
        if label == "half":
            assert types == {name: onnx.TensorProto.FLOAT16}
        else:
            assert types[f"{name}.int4"] == onnx.TensorProto.UINT8
        ours = FileModel(path, signature).run(test)
        real = np.asarray(test["attention_mask"]) == 1
        found[label] = float(np.linalg.norm((ours - exact)[real]) / np.linalg.norm(exact[real]))
    assert found["half"] < found["beside"] < found["int4"] < 0.2


def test_a_plan_with_types_is_followed(run: Path, cli: Any, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    for group in plan["groups"]:
        group["dtype"] = "int8"
    (tmp_path / "edited.json").write_text(json.dumps(plan), encoding="utf-8")
    done = cli("compress", "--plan", tmp_path / "edited.json", "-o", tmp_path / "run", "--no-timing")
    assert done.code == 0, done.err
    graph = onnx.load(str(tmp_path / "run" / "model.onnx")).graph
    assert onnx.TensorProto.INT8 in {i.data_type for i in graph.initializer}
    # With a size that it does not keep, it says so.
    small = cli("compress", "--plan", tmp_path / "edited.json", "--size", "40KB", "-o", tmp_path / "run", "--no-timing")
    assert small.code == 1 and "40,000 were allowed" in small.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--size", "eight"), 2, "8MB"),
        (("--size", "8XB"), 2, "8MB"),
        (("--size", "0"), 1, "is not a size of a file"),
        (("--size", "8MB", "--budget", 0.5), 2, "give one of"),
        (("--size", "8MB", "--quantize", "int8"), 1, "leave --quantize out"),
        (("--size", "70KB", "--selector", "uniform", "--calib", "none"), 1, "leave --selector out"),
        (("--size", "9KB", "--calib", "none"), 1, "no file of 9,000 bytes can hold the model"),
        (("--size", "0.01", "--calib", "none"), 1, "give --size"),
    ],
)
def test_bad_sizes(cli: Any, tmp_path: Path, bert_folder: Path, arguments: Any, code: int, told: str) -> None:
    done = cli("compress", bert_folder, *arguments, "-o", tmp_path / "run")
    assert done.code == code and told in " ".join(done.err.split())
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_sizes_of_what_has_no_file(cli: Any, tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "bert")
    (folder / "config.json").unlink()
    done = cli("compress", folder / "model.safetensors", "--size", "1MB", "-o", tmp_path / "run")
    assert done.code == 1 and "--size" in done.err and "--arch" in done.err
