"""Every measured number on the pages is what its file says, and every one has a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import render_numbers
from measured import Table, as_json, publish, read

FOLDER = ROOT / "docs" / "numbers"
KNOWN = render_numbers.numbers(FOLDER)
PROSE = yaml.safe_load((FOLDER / "prose.yaml").read_text(encoding="utf-8"))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in render_numbers.pages(ROOT)}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_was_measured(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    assert render_numbers.rendered(page, text, KNOWN, PROSE) == text, "run `make numbers`"
    assert list(render_numbers.unfounded(page, text, KNOWN, PROSE)) == []


def test_sentences_belong_to_pages() -> None:
    assert set(PROSE) <= set(PAGES)


@pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.json")])
def test_a_file_says_where_it_is_from(name: str) -> None:
    found = read(FOLDER / name)
    facts = found.facts if isinstance(found, Table) else found["provenance"]
    assert facts["command"] and facts["versions"]
    assert "/home" not in str(facts) and "/root" not in str(facts) and "/tmp" not in str(facts)


TABLE = Table({"model": "", "score": ".4f", "ms": ".0f us"}, [["dense", 0.86724, 215.2], ["small", None, 99.6]])
PAGE = """Text with `0.777` in code.

<!-- numbers: bench -->
| old |
<!-- end -->

The score is
0.1 against 3.
"""
SAID = {"page.md": {"measured": ["The score is {bench['dense', 'score']:.2f} against {bench['small', 'ms']:.0f}."]}}


def test_tables_and_sentences_are_written() -> None:
    text = render_numbers.rendered("page.md", PAGE, {"bench": TABLE}, SAID)
    assert "| dense | 0.8672 | 215 us |\n| small |  | 100 us |\n<!-- end -->" in text
    assert "The score is\n0.87 against 100." in text
    assert render_numbers.rendered("page.md", text, {"bench": TABLE}, SAID) == text
    assert list(render_numbers.unfounded("page.md", text, {"bench": TABLE}, SAID)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "It is 4.25 times as good.\n",
        lambda text: text + "It has 17 MB.\n",
        lambda text: text + "| x | 0.8672 |\n",
    ],
)
def test_what_no_file_stands_behind_is_listed(change: Callable[[str], str]) -> None:
    text = change(render_numbers.rendered("page.md", PAGE, {"bench": TABLE}, SAID))
    assert len(list(render_numbers.unfounded("page.md", text, {"bench": TABLE}, SAID))) == 1


@pytest.mark.parametrize("said", ["The mark is {bench['dense', 'score']:.2f}", "{bench['dense', 'score']:g} against"])
def test_a_sentence_that_is_gone_or_a_wrong_mark_is_an_error(said: str) -> None:
    text = PAGE.replace("against 3", "against 0.5 against 3")
    with pytest.raises(render_numbers.Drift):
        render_numbers.rendered("page.md", text, {"bench": TABLE}, {"page.md": {"measured": [said]}})
    with pytest.raises(render_numbers.Drift, match="names no table"):
        render_numbers.rendered("page.md", PAGE, {"other": TABLE}, {})


def test_a_row_is_named_by_its_first_cells() -> None:
    table = Table({"": "", "keep": "g", "x": "g"}, [["a", 0.5, 1], ["a", 0.3, 2]])
    assert table["a", 0.3, "x"] == 2
    with pytest.raises(KeyError, match="2 rows"):
        _ = table["a", "x"]


def test_what_a_bench_writes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["somewhere/bench_x.py", "--data", "/home/me/data", "--rounds", "3"])
    assert publish(TABLE, tmp_path / "bench", "x") == TABLE.text()
    found: Any = read(tmp_path / "bench" / "x.json")
    assert found.rows == [list(row) for row in TABLE.rows]
    assert found.columns == TABLE.columns
    assert found.facts["command"] == "python tools/bench_x.py --data data --rounds 3"
    (tmp_path / "kept").mkdir()
    assert render_numbers.take(tmp_path / "bench", tmp_path / "kept") == []
    (tmp_path / "kept" / "x.json").write_text(as_json(TABLE))
    assert render_numbers.take(tmp_path / "bench", tmp_path / "kept") == ["x.json"]
    assert read(tmp_path / "kept" / "x.json").facts == found.facts


def test_the_command_checks() -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "render_numbers.py"), "--check"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout
