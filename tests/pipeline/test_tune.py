"""`lowrank tune`: the search itself, what it leaves, and what it says when nothing is good enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import read, write_text
from conftest import Outcome

import lowrank
from lowrank.backends.onnx.save import file_size
from lowrank.errors import PlanMismatch
from lowrank.pipeline.search.study import FIRST, Study
from lowrank.pipeline.search.tuning import Workbench
from lowrank.results.tuning import Limits, Trial, best_of, nearest_of

pytest.importorskip("optuna")

Cli = Callable[..., Outcome]
LIMITS = Limits(drop=0.05)


def came_to(trial: Trial) -> Trial:
    """A made-up model: fewer numbers are smaller and worse."""
    bits = {"float32": 32, "int8": 8, "int4": 4}[trial.dtype]
    drop = (1 - trial.keep) ** 2 / 4 + {"float32": 0.0, "int8": 0.002, "int4": 0.03}[trial.dtype]
    return replace(
        trial,
        bytes=int(1e5 * trial.keep * bits),
        ms=10.0 * trial.keep,
        quality=1 - drop,
        drop=drop,
        low=None,
        high=None,
    )


def searched(folder: Path, count: int, seed: int = 0, resume: bool = False, minutes: float = 0.0) -> list[Trial]:
    folder.mkdir(exist_ok=True)
    study = Study(folder, {"model": "m"}, LIMITS, minutes, seed, resume)
    while len(study.trials) < count:
        found = study.ask()
        assert found is not None
        study.tell(found[0], came_to(found[1]))
    return study.trials


def test_a_seed_gives_the_same_trials_and_none_twice(tmp_path: Path) -> None:
    whole = searched(tmp_path / "a", 12)
    assert whole == searched(tmp_path / "b", 12) and whole[:5] != searched(tmp_path / "c", 5, seed=1)
    assert [(t.keep, t.dtype) for t in whole[: len(FIRST)]] == [(each["keep"], each["dtype"]) for each in FIRST]
    keys = [(t.keep, t.structures, t.dtype, t.minutes) for t in whole]
    assert len(set(keys)) == len(keys) and [t.number for t in whole] == list(range(1, 13))


def test_a_study_that_goes_on_is_the_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = searched(tmp_path / "a", 12)
    assert searched(tmp_path / "b", 9) == whole[:9]
    study = Study(tmp_path / "b", {"model": "m"}, LIMITS, 0.0, 0, True)
    # Stopped in a trial: it comes again.
    asked = study.ask()
    assert asked is not None and asked[1].keep == whole[9].keep
    assert searched(tmp_path / "b", 12, resume=True) == whole
    with pytest.raises(PlanMismatch, match="the model was m and is other"):
        Study(tmp_path / "b", {"model": "other"}, LIMITS, 0.0, 0, True)
    assert searched(tmp_path / "b", 3) == whole[:3]


def test_what_cannot_be_made_is_told_and_not_tried_again(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    study = Study(tmp_path, {}, LIMITS, 1.0, 0, False)
    for _ in range(8):
        asked = study.ask()
        assert asked is not None
        study.tell(asked[0], replace(asked[1], problem="no such ranks"))
    assert len({(t.keep, t.structures, t.dtype, t.minutes) for t in study.trials}) == 8
    assert best_of(study.trials, LIMITS) is None and nearest_of(study.trials, LIMITS) is None


def test_limits_and_goals() -> None:
    trial = Trial(
        number=1, keep=0.5, structures="all", dtype="int8", minutes=0, bytes=100, ms=10.0, quality=0.9, drop=0.02
    )
    assert Limits(drop=0.1).goal == "bytes" and Limits(drop=0.1, ms=1).goal == "bytes"
    assert Limits(drop=0.1, bytes=1).goal == "ms" and Limits(drop=0.1, bytes=1, ms=1).goal == "drop"
    assert trial.excess(Limits(drop=0.02, bytes=100, ms=10)) == 0
    assert trial.verdict(Limits(drop=0.01, bytes=100, ms=5)) == "loses too much, too slow"
    assert trial.verdict(Limits(drop=0.02, bytes=50)) == "too large"
    smaller, nearer = replace(trial, number=2, bytes=80, drop=0.2), replace(trial, number=3, bytes=90, drop=0.04)
    assert best_of([trial, smaller, nearer], Limits(drop=0.05)) == nearer
    assert nearest_of([trial, smaller, nearer], Limits(drop=0.05, bytes=85)) == nearer
    assert Trial.from_json(trial.to_json()) == trial and trial.flags() == "--budget 0.5 --quantize int8"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, bert_folder: Path) -> tuple[Path, Path, Path]:
    """Model, text and run of a search for two trials. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("tuned")
    text = write_text(folder / "text.txt", 40)
    settings = lowrank.Settings(calib=str(text))
    lowrank.pipeline.tune(str(bert_folder), output=folder / "run", max_drop=0.5, trials=2, settings=settings)
    return bert_folder, text, folder / "run"


@pytest.mark.slow
def test_the_best_trial_is_a_finished_run(tuned: tuple[Path, Path, Path]) -> None:
    _, _, run = tuned
    found, report = read(run / "tune.json"), read(run / "report.json")
    best = found["best"]
    assert best == min(found["trials"], key=lambda trial: trial["bytes"]) and found["nearest"] is None
    assert file_size(run / "model.onnx") == best["bytes"]
    assert report["onnx"]["dtype"] == best["dtype"] and report["latency"] is not None
    assert report["quality"]["sets"][0]["fidelity"] == pytest.approx(best["quality"], abs=1e-5)
    assert {"plan.json", "model", "run.py"} <= {path.name for path in run.iterdir()}
    assert not (run / ".lowrank-progress").exists()
    lowrank.load(run)


@pytest.mark.slow
def test_more_trials_go_on_with_the_study(
    tuned: tuple[Path, Path, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text, before = tuned
    run = shutil.copytree(before, tmp_path / "run")
    made = list[int]()

    def tried(self: Workbench, trial: Trial) -> Trial:
        made.append(trial.number)
        return replace(came_to(trial), bytes=10**9)

    monkeypatch.setattr(Workbench, "tried", tried)
    asked = ("tune", model, "-o", run, "--calib", text, "--max-drop", 0.5)
    done = cli(*asked, "--trials", 4, "--resume")
    assert done.code == 0, done.err
    assert made == [3, 4] and "best: meets all" in done.out
    after = read(run / "tune.json")
    assert after["best"] == read(before / "tune.json")["best"] and len(after["trials"]) == 4
    assert "healing was 0" in cli(*asked, "--trials", 4, "--resume", "--heal", 1).err


def test_nothing_within_the_limits_is_exit_code_1(
    bert_folder: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(Workbench, "tried", lambda self, trial: came_to(trial))
    asked = ("tune", bert_folder, "-o", run, "--calib", "none", "--trials", 3, "--size", "1KB", "--latency", "100ms")
    done = cli(*asked)
    assert done.code == 1 and "no trial of 3 is within" in done.err and "too large" in done.out
    assert "the nearest is trial 2 (--budget 1 --quantize int4)" in done.err, done.err
    assert "the smallest drop" in done.out
    assert not (run / "model.onnx").exists() and not (run / "report.json").exists()
    told = cli(*asked, "--json")
    found: Any = json.loads(told.out)
    assert told.code == 1 and found["best"] is None and found["nearest"]["number"] == 2


def test_without_optuna_the_message_says_what_to_install(cli: Cli, bert_folder: Path, tmp_path: Path) -> None:
    import sys
    from unittest import mock

    with mock.patch.dict(sys.modules, {"optuna": None}):
        done = cli("tune", bert_folder, "-o", tmp_path / "run")
    assert done.code == 1 and "lowrank[tune]" in done.err and not (tmp_path / "run" / "analysis.json").exists()
