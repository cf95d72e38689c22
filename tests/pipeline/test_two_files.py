"""A run leaves two graphs: the exact one, and the same in eight bits where that is smaller."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from builders import write_text

import lowrank
from lowrank.backends.base import signature_of
from lowrank.backends.onnx.save import file_size
from lowrank.edge.target import Target
from lowrank.evaluate.graph import FileModel
from lowrank.healing.training import Training
from lowrank.pipeline.run.layout import GRAPHS
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report


@pytest.fixture(scope="module")
def made(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    place = tmp_path_factory.mktemp("two")
    settings = lowrank.Settings(calib=str(write_text(place / "text.txt", 60)))
    report = lowrank.compress(str(bert_folder), 0.5, output=place / "run", settings=settings)
    return place / "run", report


def test_both_are_written_and_measured(made: tuple[Path, Report], bert_folder: Path) -> None:
    run, report = made
    exact, int8 = run / ONNX_FILE, run / INT8_FILE
    assert file_size(int8) < file_size(exact)
    assert {ONNX_FILE, INT8_FILE} <= set(report.files)
    assert report.latency is not None and report.quality is not None and report.quality.int8 is not None
    assert report.latency.int8_onnx_bytes == file_size(int8) and report.latency.int8_ms
    assert report.latency.compressed_onnx_bytes == file_size(exact)
    names = [[row.name for row in quality.sets or ()] for quality in (report.quality, report.quality.int8)]
    assert names[0] == names[1]
    assert report.take is not None
    assert Report.from_json(report.to_json()) == report
    page = (run / "report.html").read_text(encoding="utf-8")
    assert INT8_FILE in page and "Files to ship" in page
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert report.take in card and f"| {INT8_FILE} |" in card
    # The same model: one weight differs from the other by its rounding alone.
    signature: Any = signature_of(lowrank.open_model(bert_folder))
    feed = signature.example(3, 11)
    one, two = (FileModel(path, signature).run(feed) for path in (exact, int8))
    assert 0 < np.abs(one - two).max() < 0.2 * np.abs(one).max()
    assert {each.op_type for each in onnx.load(int8).graph.node} & {"MatMulInteger", "DynamicQuantizeLinear"}


@pytest.mark.slow
def test_healing_and_cutting_leave_two_again(made: tuple[Path, Report], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "run")
    lowrank.compress(None, 0.2, output=tmp_path / "run", refit=False, latency=False)
    before = (tmp_path / "run" / INT8_FILE).read_bytes()
    assert lowrank.heal(tmp_path / "run", Training(steps=30), latency=False).healing[-1].kept
    healed = (tmp_path / "run" / INT8_FILE).read_bytes()
    assert healed != before
    lowrank.truncate(tmp_path / "run", lowrank.Budget.params(0.1), output=tmp_path / "cut", latency=False)
    assert file_size(tmp_path / "cut" / INT8_FILE) < file_size(tmp_path / "cut" / ONNX_FILE)
    assert (tmp_path / "cut" / INT8_FILE).read_bytes() != healed


@pytest.mark.slow
def test_left_out_where_nobody_wants_it(bert_folder: Path, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", lowrank.Settings(calib="none")
    lowrank.compress(str(bert_folder), 0.5, output=run, settings=plain, latency=False)
    assert (run / INT8_FILE).exists()
    # What another result of the run had beside it goes with it.
    report = lowrank.compress(None, 0.5, output=run, latency=False, int8=False)
    assert not (run / INT8_FILE).exists() and INT8_FILE not in report.files
    lowrank.compress(None, 0.5, output=run, latency=False, target=Target(dtype="int8"))
    assert not (run / INT8_FILE).exists() and (run / ONNX_FILE).exists()


def test_left_out_where_eight_bits_are_no_smaller(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    np.savez(tmp_path / "inputs.npz", input=np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    settings = lowrank.Settings(calib=str(tmp_path / "inputs.npz"), targets=("all",))
    report = lowrank.compress(model, 1.0, output=tmp_path / "run", settings=settings, latency=False)
    assert (tmp_path / "run" / ONNX_FILE).exists() and not (tmp_path / "run" / INT8_FILE).exists()
    assert any(note.startswith(f"{INT8_FILE} is left out") for note in report.notes)


def test_every_graph_belongs_to_one_result() -> None:
    assert set(GRAPHS) >= {ONNX_FILE, f"{ONNX_FILE}.data", INT8_FILE, f"{INT8_FILE}.data"}
