"""Many sizes over one file: the same bits as a file for each, and hardly more bytes than the largest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import write_text

import lowrank
from lowrank.backends import open_model
from lowrank.backends.ort_session import typed
from lowrank.backends.torch import ModuleBackend
from lowrank.evaluate.graph import open_graph
from lowrank.pipeline.publish import elastic


@pytest.fixture
def sizes(cli: Any, bert_folder: Path, tmp_path: Path) -> Path:
    text = write_text(tmp_path / "text.txt", 60)
    done = cli("export", bert_folder, "--elastic", "0.3,0.5,0.8", "--calib", text, "-o", tmp_path / "elastic")
    assert done.code == 0, done.err
    return tmp_path / "elastic"


@pytest.mark.slow
def test_every_size_gives_the_bits_of_its_own_file(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {}

    write_onnx = ModuleBackend.write_onnx

    def also_alone(small: ModuleBackend, path: Path, opset: int | None = None) -> None:
        write_onnx(small, path, opset)
        written[path.name] = small

    monkeypatch.setattr(ModuleBackend, "write_onnx", also_alone)
    text = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)))
    found = elastic.export_elastic(bert_folder, [0.3, 0.5], tmp_path / "elastic", settings=text)
    assert sorted(found) == [0.3, 0.5] and all(path.exists() for path in found.values())
    for path in found.values():
        small = written[path.name]
        write_onnx(small, tmp_path / path.name)
        one, other = (open_graph(p) for p in (path, tmp_path / path.name))
        feed = small.signature.example(3, 9, padded=True)
        a, b = (s.run(None, typed(s, feed))[0] for s in (one, other))
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_numbers_are_stored_once(sizes: Path, tmp_path: Path) -> None:
    graphs = sorted(sizes.glob("model_*.onnx"))
    assert [path.name for path in graphs] == ["model_0.3.onnx", "model_0.5.onnx", "model_0.8.onnx"]
    assert sorted(p.name for p in sizes.glob("*.data")) == ["model_elastic.onnx.data"]
    largest = tmp_path / "alone.onnx"
    model = onnx.load(str(graphs[-1]))
    onnx.save(model, str(largest))
    tensors = sum(np.prod(i.dims) * 4 for i in model.graph.initializer)
    pages = 4096 * len(model.graph.initializer)
    assert (sizes / "model_elastic.onnx.data").stat().st_size <= tensors + pages
    assert all(path.stat().st_size < 100_000 for path in graphs)
    for path in graphs:
        onnx.checker.check_model(str(path))


def test_what_cannot_be_shared_is_refused(cli: Any, bert_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, told in (
        (("--elastic", "0.3,0.5", "--quantize", "int8"), "not nested"),
        (("--elastic", "0.3;0.5"), "0.3;0.5"),
        (("--elastic", "0.00001"), "smallest"),
    ):
        refused = cli("export", bert_folder, "--calib", "none", "-o", out, *arguments)
        assert refused.code in (1, 2) and told in refused.err and not list(out.glob("*.onnx")), refused.err


@pytest.mark.slow
def test_without_sizes_nothing_is_calibrated(cli: Any, bert_folder: Path, tmp_path: Path) -> None:
    assert cli("export", bert_folder, "-o", tmp_path / "dense").code == 0
    model: Any = open_model(bert_folder)
    assert (tmp_path / "dense" / "model.onnx").stat().st_size > model.nbytes * 0.9
