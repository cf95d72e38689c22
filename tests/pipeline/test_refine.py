"""Block refinement: never worse on held-out samples, repeatable, and said in words where it could not be done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build
from builders import tiny_bert_folder, two_factors, write_text
from safetensors.torch import load_file

import lowrank
from lowrank.artifacts import read_json
from lowrank.backends.base import signature_of
from lowrank.backends.torch.module import ModuleBackend
from lowrank.core.selection.knapsack import Knapsack
from lowrank.edge.target import Target
from lowrank.healing.training import Training
from lowrank.pipeline import evaluate, refining
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
        for module in ("lowrank.backends.memory", "lowrank.parallel"):
            monkeypatch.setattr(f"{module}.cores", lambda jobs=jobs: jobs)
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


@pytest.mark.slow
def test_blocks_that_cannot_be_trained_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer changes what another one's gradient needs: it can be run, and not trained."""

    def refuse(*_: object) -> None:
        raise RuntimeError("a variable was modified by an inplace operation")

    model = str(tiny_bert_folder(tmp_path / "bert"))
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 40)))
    options: dict[str, Any] = {"settings": settings, "latency": False, "int8": False}
    monkeypatch.setattr("lowrank.healing.blocks.BlockFit._backward", refuse)
    report = lowrank.compress(model, 0.5, output=tmp_path / "run", **options)
    assert report.refinement is None
    assert any("cannot be trained (a variable was modified" in note for note in report.notes)


def test_flags_stay_and_several_processes_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = lowrank.open_model(build("bert"))
    assert isinstance(dense, ModuleBackend)
    feeds = [signature_of(dense).example(8, 6, seed) for seed in range(6)]
    calibration: Any = SimpleNamespace(
        backend=dense, fit=feeds[:4], heldout=feeds[4:], provenance={"samples": 48}, is_own_alone=False
    )
    chosen = [w for w in dense.weights if w.is_linear and w.role == "projection" and w.stack == 1]
    small = dense.rewrite({w.name: two_factors(dense.read(w.name), w.full_rank // 4) for w in chosen})
    frozen = next(iter(small.module.parameters())).requires_grad_(False)
    flags = [p.requires_grad for p in small.module.parameters()]
    found, notes = refining.refine(calibration, small)
    assert found is not None and not notes and not frozen.requires_grad
    assert [p.requires_grad for p in small.module.parameters()] == flags
    monkeypatch.setenv("WORLD_SIZE", "2")
    found, notes = refining.refine(calibration, small)
    assert found is None and notes[0].startswith("blocks were not refined: only one of several processes")


@pytest.mark.slow
def test_it_stays_in_the_report(analyzed: tuple[str, Path], tmp_path: Path) -> None:
    report, _ = compressed(analyzed)
    found = report.refinement
    assert found is not None
    assert evaluate(analyzed[1]).refinement == found
    cut = lowrank.truncate(analyzed[1], 0.3, output=tmp_path / "cut", latency=False)
    assert cut.refinement == found
    assert lowrank.heal(analyzed[1], Training(steps=2), latency=False).refinement == found
    assert compressed(analyzed, heal=Training(steps=2))[0].refinement is None


@pytest.mark.slow
def test_few_bits_choose_no_pivots(analyzed: tuple[str, Path]) -> None:
    plain, _ = compressed(analyzed, 0.8)
    report, _ = compressed(analyzed, 0.8, target=Target(dtype="int8"))
    structures = [{e["structure"] for e in read_json(analyzed[1] / "plan.json", "plan")["groups"]}]
    assert "pivoted" not in structures[0] and report.targets.keep_ratio <= 0.8 and plain.targets.keep_ratio <= 0.8
    # Asked for, they are chosen, and left out of the graph with a remark.
    asked, _ = compressed(analyzed, 0.8, target=Target(dtype="int8"), selector=Knapsack(structures=("pivoted",)))
    assert any(note.startswith("pivoted factors are two factors or one matrix") for note in asked.notes)
