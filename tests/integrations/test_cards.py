"""The model card: measured numbers, the original's licence, and nothing of whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import read, tiny_bert_folder, write_text

from lowrank.core.share import percent
from lowrank.report.card import MARK, base_of, public_command, read_card

ORIGINAL = """---
license: cc-by-4.0
license_link: https://example.org/licence
language: [en, de]
tags: [embeddings]
model-index: [{name: big, results: [{value: 99.9}]}]
base_model: someone/pretrained
library_name: other
---
# Great model

It is great, and you must say that someone made it.

## Results

99.9
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_bert_folder(tmp_path_factory.mktemp("secret") / "bert")
    (made / "README.md").write_text(ORIGINAL)
    return made


def header_of(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text().split("---\n")[1])


@pytest.mark.slow
def test_a_card_is_written_and_renewed(folder: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    run, card = tmp_path / "run", tmp_path / "run/model/README.md"
    text = write_text(tmp_path / "text.txt")
    done = cli("compress", folder, "--budget", "0.5", "-o", run, "--calib", text)
    assert done.code == 0, done.err
    report, first = read(run / "report.json"), card.read_text()
    header = header_of(card)
    assert header["base_model"] == "someone/pretrained" and header["library_name"] == "transformers"
    assert header["license"] == "cc-by-4.0" and header["license_link"] == "https://example.org/licence"
    assert header["language"] == ["en", "de"] and header["tags"] == ["lowrank", "low-rank", "embeddings"]
    assert "model-index" not in header
    for key in ("params_before", "params_after", "bytes_before", "bytes_after", "macs_after"):
        assert f"{report['model'][key]:,}" in first
    assert percent(report["targets"]["keep_ratio"]) in first
    assert percent(report["quality"]["fidelity"]) in first
    assert f"| {report['latency']['compressed_ms']:.2f} |" in first and report["provenance"]["processor"] in first
    assert "import lowrank" in first and "AutoModel.from_pretrained" in first
    assert "lowrank compress bert --budget 0.5 -o run --calib text.txt" in first
    assert str(tmp_path) not in first and str(folder.parent) not in first
    assert "you must say that someone made it" in first and first.count(MARK) == 1
    assert report["files"]["model/README.md"] == len(first.encode())

    assert cli("heal", run, "--steps", "10", "--no-latency").code == 0
    healed = card.read_text()
    assert healed.count("you must say that someone made it") == 1 and healed.count(MARK) == 1
    assert "lowrank compress bert" in healed
    for _ in range(2):
        assert cli("evaluate", "-o", run).code == 0
    again, report = card.read_text(), read(run / "report.json")
    assert header_of(card) == header
    assert (
        f"| {report['latency']['compressed_ms']:.2f} |" in again
        and f"{100 * report['quality']['fidelity']:.1f} %" in again
    )
    assert again.count("you must say that someone made it") == 1 and again.count("## The original's card") == 1
    assert again.count("lowrank compress bert") == 1 and "lowrank evaluate" not in again
    assert again.count("lowrank heal") == sum(entry["kept"] for entry in report["healing"])


def test_the_base_model_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = read_card("")
    cached = {"path": "/home/me/.cache/huggingface/hub/models--BAAI--bge-small-en/snapshots/abc"}
    assert base_of(none, cached, {}) == "BAAI/bge-small-en"
    for private in ("/home/me/model", "./model", "~/model", "C:\\model", "a/b/c", "../model", "model"):
        assert base_of(none, {"path": "/x"}, {"_name_or_path": private}) is None
    assert base_of(none, {}, {"_name_or_path": "org/model"}) == "org/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/model").mkdir(parents=True)
    assert base_of(none, {}, {"_name_or_path": "org/model"}) is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("x/lowrank|compress|/home/me/a b|-o=/tmp/run", "lowrank compress 'a b' -o=run"),
        ("lowrank|evaluate|--task|sts:/home/me/sts.tsv", "lowrank evaluate --task sts:sts.tsv"),
        ("lowrank|compress|s3://bucket/secret/model|--calib|~/t.txt", "lowrank compress model --calib t.txt"),
        ("lowrank|compress|models/bert|--targets|conv,head", "lowrank compress models/bert --targets conv,head"),
        ("script.py|/home/me", ""),
        ("", ""),
    ],
)
def test_commands_are_shown_without_folders(given: str, shown: str) -> None:
    assert public_command(given.split("|") if given else []) == shown


@pytest.mark.parametrize(
    "header",
    [
        "",
        "- a",
        "{{{",
        "license: {a: 1}\ntags: 3\nbase_model: [1, 2]",
        "license: !!python/object:os.system x",
        "license: 2020-99-99\n\0",
        "[" * 1500,
    ],
)
def test_odd_cards_are_read(header: str) -> None:
    found = read_card(f"---\n{header}\n---\n# Title")
    assert not found.entries.keys() - {"license"} and not found.tags and found.base is None
    assert found.title == "Title" or not header
