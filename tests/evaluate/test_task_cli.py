"""`--task` and `--max-drop` on the command line, and what they leave in report.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import read, sentences, write_text
from conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [f"{a} {b}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(sentences(30, 1), sentences(30, 2), strict=True))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    rows = [f"{i % 2}\t{text}" for i, text in enumerate(sentences(30))]
    (tmp_path / "labels.tsv").write_text("\n".join(["label\tsentence", *rows]))
    write_text(tmp_path / "text.txt")
    return tmp_path


def test_several_tasks_make_the_generalisation_table(cli: Cli, here: Path, bert_folder: Path) -> None:
    made = cli(
        "compress", bert_folder, "--budget", "0.4", "--calib", "text.txt", "--no-timing", "--task", "sts:pairs.tsv"
    )
    assert made.code == 0, made.err
    assert "Tasks" in made.out and "spearman" in made.out and "paired bootstrap" in made.out
    (row,) = read(here / "lowrank-run/report.json")["quality"]["tasks"]
    assert row["drop"] == pytest.approx(row["dense"] - row["compressed"])
    assert row["low"] <= row["drop"] <= row["high"] and row["samples"] == 30 and row["resamples"] == 1000

    # Without a task, what is known of the same files stays.
    again = cli("evaluate", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["quality"]["tasks"] == [row]

    specs = ["fidelity", "sts:pairs.tsv", "classify:labels.tsv"]
    several = cli("evaluate", "--json", *(part for spec in specs for part in ("--task", spec)))
    assert several.code == 0, several.err
    report = json.loads(several.out)
    assert [r["task"] for r in report["quality"]["tasks"]] == specs
    assert report["quality"]["tasks"][1] == row
    assert {"relative_error", "cosine", "samples", "data"} <= set(report["quality"])
    assert report["targets"]["keep_ratio"] <= 0.4 and report["latency"]["speedup"] > 0
    content = read(here / "lowrank-run/report.json")
    assert content.pop("schema") and content == report


def test_a_wrong_task_costs_nothing(cli: Cli, here: Path, bert_folder: Path) -> None:
    wrong = cli("compress", bert_folder, "--budget", "0.4", "--calib", "none", "--task", "stz:pairs.tsv")
    assert (wrong.code, "did you mean 'sts'" in wrong.err) == (1, True)
    assert not (here / "lowrank-run/model").exists()
    assert cli("compress", bert_folder, "--budget", "0.4", "--calib", "none", "--no-timing").code == 0
    before = (here / "lowrank-run/report.json").read_bytes()
    wrong = cli("evaluate", "--task", "sts:nowhere.tsv")
    assert (wrong.code, "there is no nowhere.tsv" in wrong.err) == (1, True)
    assert (here / "lowrank-run/report.json").read_bytes() == before


def test_the_drop_stays_within_its_limit(cli: Cli, here: Path, bert_folder: Path) -> None:
    options = ["--calib", "text.txt", "--no-timing", "--json"]
    kept: list[float] = []
    for limit in ("0.2", "0.02"):
        made = cli("compress", bert_folder, "--task", "fidelity", "--max-drop", limit, *options)
        assert made.code == 0, made.err
        report = json.loads(made.out)
        (row,) = report["quality"]["tasks"]
        assert report["budget"] == {"kind": "drop", "limit": float(limit), "reached": row["drop"]}
        assert row["drop"] <= float(limit)
        assert "keep ratios that were tried" in " ".join(report["notes"])
        kept.append(report["targets"]["keep_ratio"])
    assert kept[0] < kept[1] <= 1
    again = cli("evaluate", "--json", "--task", "fidelity")
    assert again.code == 0, again.err
    assert json.loads(again.out)["budget"] == report["budget"]


def test_what_is_rounded_is_judged_as_rounded(cli: Cli, here: Path, bert_folder: Path) -> None:
    made = cli(
        "compress", bert_folder, "--task", "fidelity", "--max-drop", "0.1", "--quantize", "int8", "--calib", "text.txt",
        "--no-timing", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert report["onnx"]["dtype"] == "int8" and report["budget"]["reached"] <= 0.1


def test_a_drop_that_cannot_be_kept_says_what_was_tried(cli: Cli, here: Path, bert_folder: Path) -> None:
    made = cli(
        "compress", bert_folder, "--task", "fidelity", "--max-drop", "0", "--quantize", "int4", "--calib", "text.txt",
        "--no-timing",
    )  # fmt: skip
    assert made.code == 1
    assert "no keep ratio was found whose drop is at most 0" in made.err and "1: 0." in made.err
    assert not (here / "lowrank-run/model").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-drop", "0.01", "--budget", "0.5"], 2, "finds its own keep ratio"),
        (["--max-drop", "-1"], 1, "a drop of -1"),
        (["--max-drop", "nan"], 1, "a drop of nan"),
        (["--task", "fidelity"], 2, "--max-drop or --plan"),
    ],
)
def test_refusals(arguments: list[str], code: int, message: str, cli: Cli, bert_folder: Path) -> None:
    refused = cli("compress", bert_folder, *arguments)
    assert (refused.code, message in refused.err) == (code, True), refused.err
