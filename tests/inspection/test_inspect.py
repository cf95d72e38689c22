"""`inspect` and `doctor`: what a file is and what is installed, whatever state both are in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import saved_state, trained_blocks, write_text
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from lowrank.doctor import examine
from lowrank.inspection import inspect


@pytest.fixture
def run(tmp_path: Path, shared_state_run: Path) -> Path:
    return shutil.copytree(shared_state_run, tmp_path / "run")


def graph(path: Path, rounded: bool = False, beside: bool = False) -> Path:
    """x (16) through two factors of rank 4 to 12, and a plain product."""
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.standard_normal((16, 4)).astype(np.float32),
        "b": rng.standard_normal((4, 12)).astype(np.float32),
        "c": rng.standard_normal((12, 12)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["u"]),
        helper.make_node("MatMul", ["u", "b"], ["v"]),
        helper.make_node("MatMul", ["v", "c"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    if rounded:
        tensors[2] = numpy_helper.from_array(np.ones((12, 12), np.int8), "c8")
        tensors.append(numpy_helper.from_array(np.float32(0.1), "scale"))
        nodes.insert(0, helper.make_node("DequantizeLinear", ["c8", "scale"], ["c"]))
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 12])],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    onnx.save(made, path, save_as_external_data=beside, location=f"{path.name}.data", size_threshold=0)
    return path


def test_a_graph(tmp_path: Path) -> None:
    found = inspect(graph(tmp_path / "m.onnx", beside=True))
    assert found.kind == "onnx" and found.facts["opset"] == {"ai.onnx": 20}
    assert found.facts["inputs"] == [{"name": "x", "dtype": "float", "shape": ["batch", 16]}]
    assert found.facts["outputs"][0]["name"] == "y" and found.facts["operators"] == {"MatMul": 3}
    assert found.facts["factored"] == [{"weight": "b", "rank": 4}]
    assert found.facts["params"] == 16 * 4 + 4 * 12 + 12 * 12 and found.facts["quantised"] == []
    assert found.facts["external_data"] == {"m.onnx.data": (tmp_path / "m.onnx.data").stat().st_size}
    (tmp_path / "m.onnx.data").unlink()
    assert inspect(tmp_path / "m.onnx").facts["missing"] == ["m.onnx.data"]
    rounded = inspect(graph(tmp_path / "q.onnx", rounded=True))
    assert rounded.facts["quantised"] == ["DequantizeLinear"] and "quantised" in rounded.what
    assert rounded.facts["dtypes"]["int8"] == 144 and len(rounded.facts["factored"]) == 1


def test_a_run_and_its_files(run: Path, bert_folder: Path) -> None:
    kinds = {
        name: inspect(run / name).kind for name in ("analysis.json", "plan.json", "report.json", "analysis.safetensors")
    }
    assert list(kinds.values()) == ["analysis", "plan", "report", "analysis-numbers"]
    whole = inspect(run)
    assert whole.kind == "run" and "finished" in whole.what
    assert whole.facts["report.json"]["targets"]["keep_ratio"] <= 0.5
    saved = inspect(run / "model")
    assert saved.kind == "compressed-model" and saved.facts["contents"][0]["rank"] > 0
    weights = inspect(run / "model" / "model.safetensors")
    assert weights.kind == "compressed-weights"
    assert {each["rank"] for each in weights.facts["factored"]} == {each["rank"] for each in saved.facts["contents"]}
    folder = inspect(bert_folder)
    assert folder.kind == "huggingface" and folder.facts["model_type"] == "bert" and folder.facts["tokenizer"]
    assert inspect(bert_folder / "tokenizer.json").kind == "tokenizer"
    assert inspect(bert_folder / "config.json").kind == "config"


class Surprise:
    """Says so if it is ever unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_torch_files_are_read_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(saved_state(tmp_path / "m.pt"))
    assert found.kind == "state-dict" and found.facts["params"] == sum(p.numel() for p in trained_blocks().parameters())
    for name, new in (("new.pt", True), ("old.bin", False)):
        torch.save({"x": Surprise()}, tmp_path / name, _use_new_zipfile_serialization=new)
        refused = inspect(tmp_path / name)
        assert refused.kind == "pickle" and any("print" in each for each in refused.facts["classes"])
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "s.pt")
    assert inspect(tmp_path / "s.pt").kind == "torchscript"
    program = torch.export.export(trained_blocks(), (torch.ones(2, 16),))
    torch.export.save(program, tmp_path / "m.pt2")
    exported = inspect(tmp_path / "m.pt2")
    assert exported.kind == "program" and exported.facts["inputs"][0]["shape"] == [2, 16]
    assert "unpickled" not in capsys.readouterr().out


def test_samples_tables_adapters_and_the_rest(tmp_path: Path) -> None:
    assert inspect(write_text(tmp_path / "t.txt", 30)).facts["samples"] == 30
    (tmp_path / "t.tsv").write_text("label\ttext\n1\ta b\n0\tc d\n")
    table = inspect(tmp_path / "t.tsv")
    assert table.facts["columns"] == ["label", "text"] and table.facts["first"] == "a b"
    (tmp_path / "t.jsonl").write_text('{"body": "a b"}\n')
    assert inspect(tmp_path / "t.jsonl").facts["columns"] == ["body"]
    np.savez(tmp_path / "in.npz", input_ids=np.zeros((7, 4), np.int64), attention_mask=np.ones((7, 4), np.int64))
    arrays = inspect(tmp_path / "in.npz")
    assert arrays.facts["samples"] == 7 and arrays.facts["contents"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": [7, 4],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    save_file({"base.q.lora_A.weight": torch.ones(8, 4)}, tmp_path / "adapter_model.safetensors")
    assert inspect(tmp_path / "adapter_config.json").kind == "adapter"
    assert inspect(tmp_path / "adapter_model.safetensors").kind == "adapter-weights"
    assert inspect(tmp_path).kind == "adapter" and inspect(tmp_path).facts["lora_layers"] == 1
    (tmp_path / "table.json").write_text(json.dumps({"points": {"product": [[1, 2, 3.0]]}, "tokens": 1, "threads": 1}))
    assert inspect(tmp_path / "table.json").facts["operators"] == {"product": 1}
    (tmp_path / "run.yaml").write_text("budget: 0.5\ntiming: no\n")
    assert inspect(tmp_path / "run.yaml").facts["options"] == {"budget": 0.5, "timing": False}
    (tmp_path / "later.json").write_text(json.dumps({"schema": "lowrank.later/1.0", "points": [1, 2]}))
    assert inspect(tmp_path / "later.json").what == "a lowrank later"
    point = {"name": "dense", "bytes": 10, "ms": 1.5, "quality": 1.0, "drop": 0.0, "on_front": True}
    sweep = {"schema": "lowrank.sweep/1.0", "task": {"metric": "cosine"}, "points": [point], "advice": ["keep it"]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert inspect(tmp_path / "sweep.json").facts["contents"] == [point]
    (tmp_path / "tune.json").write_text(json.dumps({"schema": "lowrank.tune/1.0", "trials": [{"drop": 1}], "best": 0}))
    assert inspect(tmp_path / "tune.json").facts["trials"] == 1


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("a.gguf", b"GGUF\x03\x00", "unknown", "llama.cpp"),
        ("a.tflite", b"\x1c\x00\x00\x00TFL3", "unknown", "TensorFlow Lite"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "unknown", "git-lfs"),
        ("a.safetensors", b"\xff" * 40, "damaged", "copy it again"),
        ("a.onnx", b"not a graph at all", "damaged", "onnx"),
        ("a.json", b"{", "damaged", "no JSON"),
        ("a.json", b'{"schema": "lowrank.plan/1.0"}', "damaged", "not whole"),
        ("a.json", b'{"schema": "lowrank.report/1.0", "error": 3}', "damaged", "not whole"),
        ("a.json", b"[1, 2]", "json", "list"),
        ("a.npz", b"PK\x03\x04zzz", "damaged", "npz"),
        ("a.txt", b"\x00\x01", "damaged", "binary"),
        ("a.pt2", b"PK\x03\x04zzz", "damaged", "torch.export"),
        ("a.pt", b"zzz", "pickle", "cut short"),
        ("a.yaml", b"a: {b: {c: d}}", "damaged", "list of them"),
        ("a", b"\x00\x01\x02", "unknown", "no kind that is known"),
        ("a", b"hello", "unknown", "text"),
        ("a", b"", "empty", "empty"),
    ],
)
def test_what_is_damaged_or_unknown_is_said(
    name: str, content: bytes, kind: str, said: str, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    (tmp_path / name).write_bytes(content)
    found = inspect(tmp_path / name)
    assert found.kind == kind
    shown = cli("inspect", tmp_path / name)
    assert shown.code == 0 and said in shown.out
    assert json.loads(cli("inspect", tmp_path / name, "--json").out)["kind"] == kind


def test_the_command(tmp_path: Path, cli: Callable[..., Any]) -> None:
    save_file({f"red \x1b[31m {i}": torch.ones(2, 2) for i in range(40)}, tmp_path / "m.safetensors")
    shown = cli("inspect", tmp_path / "m.safetensors").out
    assert "and 24 more" in shown and "\x1b" not in shown and "Next: lowrank analyze" in shown
    missing = cli("inspect", tmp_path / "nowhere")
    assert missing.code == 1 and "there is no" in missing.err


def test_headers_need_no_torch(tmp_path: Path) -> None:
    graph(tmp_path / "m.onnx")
    save_file({"x": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    write_text(tmp_path / "t.txt")
    np.savez(tmp_path / "in.npz", x=np.ones(3))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code = (
        "import sys; from pathlib import Path; from lowrank.inspection import inspect\n"
        f"for path in sorted(Path({str(tmp_path)!r}).iterdir()): assert inspect(path).kind != 'damaged', path\n"
        f"inspect(Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_doctor_tries_the_core_and_names_what_is_missing(cli: Callable[..., Any]) -> None:
    found = examine()
    assert found["works"] and found["self-check"]["difference"] < 1e-4
    assert found["machine"]["cores"] >= 1 and set(found["packages"]) >= {"torch", "onnxruntime"}
    assert all(state == "installed" or "pip install 'lowrank[" in state for state in found["extras"].values())


def test_doctor_works_where_packages_are_broken(monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    from importlib.metadata import PackageNotFoundError

    from lowrank import doctor

    real, real_version = doctor.import_module, doctor.version

    def broken(name: str) -> Any:
        if name == "onnxruntime":
            raise OSError("libstdc++.so.6: version not found")
        return real(name)

    def older(name: str) -> str:
        if name == "scipy":
            raise PackageNotFoundError(name)
        return "0.1" if name == "numpy" else real_version(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    monkeypatch.setattr(doctor, "version", older)
    told = cli("doctor", "--json")
    found = json.loads(told.out)
    assert told.code == 1 and not found["works"] and found["packages"]["scipy"] == "missing"
    assert "pip install scipy" in told.err and "libstdc++" in told.err
    assert any("asks for numpy" in line for line in found["advice"])
    said = cli("doctor")
    assert said.code == 1 and "cannot be imported" in said.out


def test_doctor_needs_nothing_heavy_to_start() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'transformers', 'numpy', 'scipy', 'psutil', 'threadpoolctl'):\n"
        "    sys.modules[name] = None\n"
        "from lowrank.cli.app import main; sys.argv = ['lowrank', 'doctor']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "torch" in done.stderr and "cannot be imported" in done.stdout
