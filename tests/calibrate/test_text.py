"""Calibration files: every format, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lowrank.calibrate.text import read_samples
from lowrank.errors import CalibrationError
from lowrank.inspection.samples import look_at_text

TABLE = 'id\tfirst\tsecond\n1\ta "quote\tb\n2\tc\td\n'


def test_lines_without_blanks_and_duplicates(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\n  one   two \nthree\r\n", encoding="utf-8")
    assert read_samples(tmp_path / "a.txt") == ["one two", "three"]


def test_tables_keep_their_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(TABLE, encoding="utf-8")
    assert read_samples(tmp_path / "a.tsv", "first") == ['a "quote', "c"]
    assert read_samples(tmp_path / "a.tsv", "first, second") == ['a "quote', "b", "c", "d"]
    (tmp_path / "a.csv").write_text('text\n"one, two"\n', encoding="utf-8")
    assert read_samples(tmp_path / "a.csv") == ["one, two"]


def test_json_lines_and_gzip(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": t}) for t in ("é one", "two"))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines)
    assert read_samples(tmp_path / "a.jsonl.gz") == ["é one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.txt", b"", None, "is empty"),
        ("a.txt", b" \n\n", None, "is empty"),
        ("a.txt", b"\x00\x01\x02", None, "binary"),
        ("a.txt", b"good\nbad \xff\n", None, "line 2 holds byte 0xff"),
        ("a.txt.gz", b"not gzip", None, "cannot read"),
        ("a.tsv", TABLE.encode(), None, "say with --column"),
        ("a.tsv", TABLE.encode(), "third", "has no column 'third'"),
        ("a.tsv", b"text\n", "text", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{', None, "line 2"),
        ("a.jsonl", b'{"body": "a"}', None, r"no text under 'text' \(it has body\)"),
        ("a.jsonl", b"[1]", None, "no text under 'text'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, column: str | None, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_samples(tmp_path / name, column)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no"):
        read_samples(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "content",
    [
        "nice film\t1\nbad film\t0\n",
        "a film that nobody should have to see twice\tbad\ngood\tfine\n",
        "nice film\tgood\nbad film\tpoor\nlong film\tgood\n",
        "It rains.\nIt snows.\n",
        "\tgood\nx\tpoor\n",
    ],
)
@pytest.mark.parametrize("column", [None, "text"])
def test_a_table_without_a_header_says_so(content: str, column: str | None, tmp_path: Path) -> None:
    from lowrank.evaluate.tasks.tables import read_columns

    for suffix, text in (("tsv", content), ("csv", content.replace("\t", ","))):
        path = tmp_path / f"a.{suffix}"
        path.write_text(text)
        for read in (
            lambda path=path: read_samples(path, column),
            lambda path=path: read_columns("sts:a", path, [("sentence1",), ("score",)]),
            lambda path=path: look_at_text(path),
        ):
            with pytest.raises(CalibrationError, match="has no header: its first line is a row"):
                read()


def test_a_column_that_is_named_needs_no_such_look(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("What did the customer say about it?\t2024\nx y\t3\n")
    assert read_samples(tmp_path / "a.tsv", "What did the customer say about it?") == ["x y"]
    (tmp_path / "b.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\n")
    assert read_samples(tmp_path / "b.tsv", "sentence1,sentence2") == ["a", "b"]
