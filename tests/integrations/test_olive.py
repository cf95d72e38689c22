"""The pass in real workflows of Olive: a tiny model goes in, a compressed one comes out and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import read, sentences

NAME = "LowRank"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("olive") is None, reason="needs olive-ai (the extra [olive])"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")


def package_config() -> dict[str, Any]:
    from lowrank.integrations import olive

    return olive.package_config()


def workflow(model: dict[str, Any], folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "input_model": model,
        "passes": {"small": {"type": NAME, **options}},
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "evaluate_input_model": False,
    }


def test_the_package_config_is_olives_own_and_one_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lowrank.integrations.olive", tmp_path / "passes.json"], check=True, capture_output=True
    )
    assert not done.stdout
    written = read(tmp_path / "passes.json")
    assert written == package_config() and {"OnnxConversion", NAME} <= set(written["passes"])


def test_a_hugging_face_model_stays_one(bert_folder: Path, tmp_path: Path) -> None:
    import lowrank

    (tmp_path / "t.txt").write_text("\n".join(sentences(40)), encoding="utf-8")
    model = {"type": "HfModel", "model_path": str(bert_folder), "task": "feature-extraction"}
    config = workflow(model, tmp_path, budget=0.5, calib=str(tmp_path / "t.txt"), refit=False)
    (tmp_path / "workflow.json").write_text(json.dumps(config))
    (tmp_path / "passes.json").write_text(json.dumps(package_config()))
    command = [sys.executable, "-m", "olive", "run", "--config", "workflow.json", "--package-config", "passes.json"]
    subprocess.run(command, cwd=tmp_path, env=dict(os.environ), check=True, capture_output=True)
    folder = next(path.parent for path in (tmp_path / "out").rglob("lowrank.json"))
    assert read(folder / "report.json")["targets"]["keep_ratio"] <= 0.5
    small: Any = lowrank.load(folder)
    assert small.config.hidden_size == 32 and sum(p.numel() for p in small.parameters()) < 22368


def test_a_hugging_face_model_becomes_onnx(bert_folder: Path, tmp_path: Path) -> None:
    model = {"type": "HfModel", "model_path": str(bert_folder), "task": "feature-extraction"}
    _run(workflow(model, tmp_path, error=0.3, calib="none", onnx=True, quantize="int8"))
    _runs(tmp_path / "out" / "model.onnx")


def test_an_onnx_model_stays_one(bert_folder: Path, tmp_path: Path) -> None:
    import lowrank

    lowrank.export(bert_folder, tmp_path / "dense")
    model = {"type": "ONNXModel", "model_path": str(tmp_path / "dense" / "model.onnx")}
    _run(workflow(model, tmp_path, budget=0.6, calib="none"))
    _runs(tmp_path / "out" / "model.onnx")
    attributes = read(tmp_path / "out" / "model_config.json")["config"]["model_attributes"]
    assert attributes["lowrank"]["targets"]["keep_ratio"] <= 0.6


def _run(config: dict[str, Any]) -> Any:
    from olive.workflows import run

    return run(config, package_config=package_config())


def _runs(graph: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    feed = {each.name: np.ones((2, 5), np.int64) for each in session.get_inputs()}
    assert np.isfinite(session.run(None, feed)[0]).all()
