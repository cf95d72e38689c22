"""Block refinement: never worse on held-out samples, repeatable, and said in words where it could not be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build
from builders import write_text
from safetensors.torch import load_file

import lowrank
from lowrank.core.selection.knapsack import Knapsack
from lowrank.pipeline import refining
from lowrank.results.report import Report


@pytest.fixture(scope="module")
def analyzed(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model, and a run with its analysis."""
    place = tmp_path_factory.mktemp("refine")
    settings = lowrank.Settings(calib=str(write_text(place / "text.txt", 60)))
    lowrank.analyze(str(bert_folder), output=place / "run", settings=settings)
    return str(bert_folder), place / "run"


def compressed(analyzed: tuple[str, Path], keep: float = 0.4, **options: Any) -> tuple[Report, dict[str, torch.Tensor]]:
    model, run = analyzed
    report = lowrank.compress(model, keep, output=run, latency=False, int8=False, **options)
    return report, load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
def test_it_gains_on_held_out_samples(analyzed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refining, "STEPS", 60)
    plain, numbers = compressed(analyzed, refine=False)
    assert plain.refinement is None and "refine" not in plain.seconds
    report, refined = compressed(analyzed)
    found = report.refinement
    assert found is not None and found.kept and found.after < 0.99 * found.before and found.steps == 60
    assert Report.from_json(report.to_json()).refinement == found
    assert refined.keys() == numbers.keys() and any(not torch.equal(refined[name], numbers[name]) for name in numbers)
    assert report.quality is not None and plain.quality is not None
    assert (report.quality.fidelity or 0) >= (plain.quality.fidelity or 0) - 0.02
    card = (analyzed[1] / "model" / "README.md").read_text(encoding="utf-8")
    assert "fitted to the original block's outputs" in card
    # A second time it is the same, bit for bit.
    again = compressed(analyzed)[1]
    assert all(torch.equal(again[name], refined[name]) for name in refined)


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same(analyzed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, torch.Tensor]] = []
    for jobs in (1, 3):
        monkeypatch.setattr("lowrank.backends.memory.cores", lambda jobs=jobs: jobs)
        made.append(compressed(analyzed)[1])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_what_is_no_better_is_left_out(analyzed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compressed(analyzed, refine=False)[1]
    monkeypatch.setattr("lowrank.healing.blocks.RATE", 30.0)
    report, numbers = compressed(analyzed)
    assert report.refinement is not None and not report.refinement.kept
    assert report.refinement.after == report.refinement.before
    assert all(torch.equal(plain[name], numbers[name]) for name in plain)


def test_where_it_cannot_be_done_a_note_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bert.onnx"
    lowrank.open_model(build("bert")).write_onnx(path)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 60, (40, 7))
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    settings = lowrank.Settings(calib=str(tmp_path / "in.npz"))
    options: dict[str, Any] = {"settings": settings, "latency": False, "int8": False}
    report = lowrank.compress(str(path), 0.5, output=tmp_path / "run", **options)
    assert report.refinement is None
    assert any(note.startswith("blocks were not refined: an ONNX graph cannot be trained") for note in report.notes)


def test_modules_without_blocks(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 16))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", input=rng.standard_normal((64, 16)).astype(np.float32))
    settings = lowrank.Settings(calib=str(tmp_path / "in.npz"), targets=("all",))
    options: dict[str, Any] = {"settings": settings, "latency": False, "int8": False}
    selector = Knapsack(structures=("two_factor",))
    report = lowrank.compress(model, 0.5, output=tmp_path / "run", selector=selector, **options)
    assert report.refinement is None and any("none were found that can be run" in note for note in report.notes)


@pytest.mark.slow
def test_too_few_samples(analyzed: tuple[str, Path], tmp_path: Path) -> None:
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "few.txt", 6)), mixed=False)
    options: dict[str, Any] = {"settings": settings, "latency": False, "int8": False}
    report = lowrank.compress(analyzed[0], 0.5, output=tmp_path / "run", **options)
    assert report.refinement is None and any("too few" in note for note in report.notes)
