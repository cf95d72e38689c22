"""`--task` and `--max-drop` on the command line, and what they leave in report.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import read, sentences, write_text
from conftest import Outcome

import lowrank

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def analysed(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an analysis of one block."""
    folder = tmp_path_factory.mktemp("analysed")
    settings = lowrank.Settings(calib=str(write_text(folder / "text.txt")), include=("*.layer.0.*",))
    lowrank.analyze(bert_folder, output=folder / "run", settings=settings)
    return folder / "run"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analysed: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(analysed, tmp_path / "lowrank-run")
    rows = [f"{a} {b}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(sentences(30, 1), sentences(30, 2), strict=True))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    rows = [f"{i % 2}\t{text}" for i, text in enumerate(sentences(30))]
    (tmp_path / "labels.tsv").write_text("\n".join(["label\tsentence", *rows]))
    return tmp_path


@pytest.mark.slow
def test_several_tasks_make_the_generalisation_table(cli: Cli, here: Path) -> None:
    made = cli("compress", "--budget", "0.4", "--no-timing", "--task", "sts:pairs.tsv")
    assert made.code == 0, made.err
    assert "Tasks" in made.out and "spearman" in made.out and "paired bootstrap" in made.out
    assert "spearman" in (here / "lowrank-run/report.html").read_text()
    (row,) = read(here / "lowrank-run/report.json")["quality"]["tasks"]
    assert row["drop"] == pytest.approx(row["dense"] - row["compressed"])
    assert row["low"] <= row["drop"] <= row["high"] and row["samples"] == 30 and row["resamples"] == 1000

    specs = ["fidelity", "sts:pairs.tsv", "classify:labels.tsv"]
    several = cli("evaluate", "--json", *(part for spec in specs for part in ("--task", spec)))
    assert several.code == 0, several.err
    report = json.loads(several.out)
    assert [r["task"] for r in report["quality"]["tasks"]] == specs
    assert report["quality"]["tasks"][1] == row
    assert {"relative_error", "fidelity", "worst", "sets", "samples", "data"} <= set(report["quality"])
    assert report["targets"]["keep_ratio"] <= 0.4 and report["latency"]["speedup"] > 0
    content = read(here / "lowrank-run/report.json")
    assert content.pop("schema") and content == report

    # Without a task, what is known of the same files stays.
    again = cli("evaluate", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["quality"]["tasks"] == report["quality"]["tasks"]


def test_a_wrong_task_costs_nothing(cli: Cli, here: Path) -> None:
    wrong = cli("compress", "--budget", "0.4", "--task", "stz:pairs.tsv")
    assert (wrong.code, "did you mean 'sts'" in wrong.err) == (1, True)
    assert not (here / "lowrank-run/model").exists()


@pytest.mark.slow
def test_the_drop_stays_within_its_limit(cli: Cli) -> None:
    made = cli("compress", "--task", "fidelity", "--max-drop", "0.02", "--no-refit", "--no-timing", "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)
    (row,) = report["quality"]["tasks"]
    assert report["budget"] == {"kind": "drop", "limit": 0.02, "reached": row["drop"]}
    assert row["drop"] <= 0.02
    assert "keep ratios that were tried" in " ".join(report["notes"])
    # A hundredth less was tried, and lost more.
    keep = round(report["targets"]["keep_ratio"], 2)
    (note,) = (note for note in report["notes"] if "were tried" in note)
    tried = {float(k): float(v) for k, v in (each.rsplit(": ", 1) for each in note.split("task: ")[1].split("; "))}
    below = max(k for k in tried if k < keep - 0.005)
    assert keep - below <= 0.02 and tried[below] > 0.02


@pytest.mark.slow
def test_a_larger_drop_keeps_less_and_is_known_afterwards(cli: Cli) -> None:
    kept: list[float] = []
    for limit in ("0.02", "0.2"):
        made = cli("compress", "--task", "fidelity", "--max-drop", limit, "--no-timing", "--json")
        assert made.code == 0, made.err
        kept.append(json.loads(made.out)["targets"]["keep_ratio"])
    assert kept[1] < kept[0] <= 1
    again = cli("evaluate", "--json", "--task", "fidelity")
    assert again.code == 0, again.err
    assert json.loads(again.out)["budget"] == json.loads(made.out)["budget"]


@pytest.mark.slow
def test_what_is_rounded_is_judged_as_rounded(cli: Cli, here: Path) -> None:
    flags = ["--task", "fidelity", "--no-timing", "--no-refit"]
    made = cli("compress", *flags, "--max-drop", "0.1", "--quantize", "int8", "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert report["onnx"]["dtype"] == "int8" and report["budget"]["reached"] <= 0.1
    before = (here / "lowrank-run/report.json").read_bytes()
    missed = cli("compress", *flags, "--max-drop", "0", "--quantize", "int4")
    assert missed.code == 1
    assert "no keep ratio was found whose drop is at most 0" in missed.err and "1: 0." in missed.err
    assert (here / "lowrank-run/report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-drop", "0.01", "--budget", "0.5"], 2, "chooses the keep ratio itself"),
        (["--max-drop", "-1"], 1, "a drop of -1"),
        (["--max-drop", "nan"], 1, "a drop of nan"),
        (["--task", "fidelity"], 2, "--max-drop or --plan"),
    ],
)
def test_refusals(arguments: list[str], code: int, message: str, cli: Cli) -> None:
    refused = cli("compress", *arguments)
    assert refused.code == code
    assert message in " ".join(refused.err.replace("│", " ").split())
