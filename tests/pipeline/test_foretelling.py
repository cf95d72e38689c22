"""What `analyze` foretells is kept, and said before anybody waits for a result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import read, write_text

import lowrank
from lowrank.artifacts import load_analysis, save_analysis
from lowrank.core.forecast import Foretold
from lowrank.errors import ArtifactError
from lowrank.evaluate.fitness import FEWEST


def test_an_analysis_foretells_each_set(shared_bert_run: Path) -> None:
    analysis = load_analysis(shared_bert_run)
    assert [point.keep for point in analysis.forecast] == [0.8, 0.5, 0.3]
    report = read(shared_bert_run / "report.json")
    measured = {row["name"]: row["fidelity"] for row in report["quality"]["sets"]}
    assert all(set(point.fidelity) == set(measured) for point in analysis.forecast)
    assert report["quality"]["fidelity"] == min(measured.values())
    assert measured[report["quality"]["worst"]] == report["quality"]["fidelity"]
    assert any("not judged on short texts (" in note for note in report["notes"])
    # What is below the floor is called unfit, and nothing else is.
    enough = [row["fidelity"] for row in report["quality"]["sets"] if row["samples"] >= FEWEST]
    assert bool([s for s in report["unfit"] if "Not fit" in s]) == any(fidelity < 0.9 for fidelity in enough)


def test_sets_are_made_and_the_tokenizer_is_read_once(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowrank.calibrate import sets, tokenize

    calls: list[str] = []

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            calls.append(name)
            return plain(*args)

        return called

    for module, name in ((sets, "text_sets"), (sets, "changed_sets"), (tokenize, "_of_folder")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    settings = lowrank.Settings(calib=str(write_text(tmp_path / "text.txt", 60)))
    report = lowrank.compress(folder, 0.5, output=tmp_path / "r", settings=settings, tasks=["fidelity"], latency=False)
    assert sorted(calls) == ["_of_folder", "changed_sets", "text_sets"]
    assert report.quality is not None and report.quality.sets and len(report.quality.sets) > 1
    # The task is measured on the graph, the table on the module.
    assert report.tasks[0].compressed == pytest.approx(report.quality.fidelity, abs=1e-3)
    assert report.tasks[0].samples == sum(row.samples for row in report.quality.sets)


@pytest.mark.parametrize("fidelity", [0.4, 0.99])
def test_a_budget_that_is_too_small_is_warned_of(
    shared_bert_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fidelity: float
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shared_bert_run, run)
    analysis = replace(load_analysis(run), forecast=(Foretold(0.5, {"short texts": fidelity}, "embedding"),))
    save_analysis(analysis, run)
    with caplog.at_level(logging.WARNING, "lowrank"):
        lowrank.compress(None, 0.5, output=run, latency=False)
    told = [record.getMessage() for record in caplog.records if record.name == "lowrank"]
    assert bool(told) == (fidelity < 0.9)
    assert not told or "of the ranking of nearest texts is the dense model's on short texts" in told[0]


def test_points_of_other_sets_or_kinds_are_no_forecast(shared_bert_run: Path, tmp_path: Path) -> None:
    analysis = load_analysis(shared_bert_run)
    first = Foretold(0.8, {"short texts": 0.9})
    for other in (Foretold(0.5, {"passages": 0.8}), Foretold(0.5, {"short texts": 0.8}, "logits")):
        save_analysis(replace(analysis, forecast=(first, other)), tmp_path)
        with pytest.raises(ArtifactError, match="foretold"):
            load_analysis(tmp_path)
