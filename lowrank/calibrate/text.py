"""Samples of text from a file."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lowrank.artifacts import parse_json
from lowrank.artifacts.outside import most_bytes
from lowrank.errors import CalibrationError

# A cell of a table may hold a whole document; csv's own bound is for malformed files.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


TABLES = (".tsv", ".csv")


def read_samples(path: Path, column: str | None = None) -> list[str]:
    """The samples in a text file, in order, without duplicates or blanks.

    `.txt` and others: a line a sample. `.tsv`, `.csv`: a header line, then `column` (several separated by commas).
    `.jsonl`: an object a line, `column` being its key. Any of them may be gzipped (`.gz`).

    Raises:
        CalibrationError: if the file is missing, empty, binary, not UTF-8 or lacks the column.
    """
    text, suffix = read_text(path), suffix_of(path)
    if suffix in TABLES:
        samples = _table(path, text, column, suffix)
    elif suffix in {".jsonl", ".json"}:
        names = [name.strip() for name in column.split(",")] if column else ["text"]
        samples = (value for number, entry in json_lines(path, text) for value in _values(path, number, entry, names))
    else:
        samples = iter(text.splitlines())
    try:
        unique = list(dict.fromkeys(s for s in (" ".join(sample.split()) for sample in samples) if s))
    except csv.Error as error:
        raise CalibrationError(f"{path} is not a table that can be read: {error}; save it again as UTF-8 CSV") from None
    if not unique:
        raise CalibrationError(f"{path} holds no text; give a file with a sample a line, a hundred or more")
    return unique


def columns_of(path: Path) -> list[str]:
    """The columns of a table, or the keys of the first object of `.jsonl`; none for plain text.

    Raises:
        CalibrationError: if it cannot be read.
    """
    text, suffix = read_text(path), suffix_of(path)
    if suffix in TABLES:
        try:
            return next(table_rows(text, suffix), [])
        except csv.Error as error:
            raise CalibrationError(f"{path} is not a table that can be read: {error}; save it again") from None
    _, entry = next(json_lines(path, text), (0, None)) if suffix in {".jsonl", ".json"} else (0, None)
    return [str(key) for key in entry] if isinstance(entry, dict) else []


def suffix_of(path: Path) -> str:
    """The suffix of a file in lower case, without that of gzip."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def line_of(path: Path, sample: str) -> int | None:
    """The number of the first line of a file that is a sample, or else holds it; None if none does, for it may be
    escaped."""
    lines = [" ".join(line.split()) for line in read_text(path).splitlines()]
    holding = [number for number, line in enumerate(lines, 1) if sample in line]
    return next((number for number in holding if lines[number - 1] == sample), holding[0] if holding else None)


def read_text(path: Path) -> str:
    """The text in a file, gzipped or not.

    Raises:
        CalibrationError: if the file is missing, empty, binary, not UTF-8, or far larger than it looks.
    """
    try:
        raw = _unzipped(path) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise CalibrationError(f"there is no {path}; give a file of text, a sample a line") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationError(f"cannot read {path}: {error}; give a readable text file") from None
    if not raw.strip():
        raise CalibrationError(f"{path} is empty; give a file with a sample a line, a hundred or more")
    if b"\x00" in raw[:65536]:
        raise CalibrationError(f"{path} is a binary file, not text; give text, or .npz for a model that reads no text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CalibrationError(
            f"{path} is not UTF-8: line {line} holds byte 0x{raw[error.start]:02x}; convert it first"
        ) from None


def _unzipped(path: Path) -> bytes:
    most = most_bytes(path)
    with gzip.open(path) as stream:
        raw = stream.read(most + 1)
    if len(raw) > most:
        raise CalibrationError(
            f"{path} holds more than {most:,} bytes of text in {path.stat().st_size:,}; decompress it and look at it"
        )
    return raw


def _table(path: Path, text: str, column: str | None, suffix: str) -> Iterator[str]:
    rows = table_rows(text, suffix)
    header = next(rows, [])
    if column is None or any(name.strip() not in header for name in column.split(",")):
        check_header(path, text, suffix)
    if column is None and len(header) > 1:
        raise CalibrationError(f"{path} has the columns {', '.join(header)}; say with --column which holds the text")
    wanted = [_index(path, name.strip(), header) for name in column.split(",")] if column else [0]
    for row in rows:
        yield from (row[i] for i in wanted if i < len(row))


def table_rows(text: str, suffix: str) -> Iterator[list[str]]:
    """The rows of a table, its header among them: `.tsv` has no quotes, `.csv` may have some."""
    plain = suffix == ".tsv"
    return csv.reader(
        text.splitlines(keepends=not plain),
        delimiter="\t" if plain else ",",
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )


NAME, NAMES = 40, 4
"""Characters and words of a name of a column, at most."""


def check_header(path: Path, text: str, suffix: str) -> None:
    """Check that the first line of a table can be names of columns.

    Raises:
        CalibrationError: if it is a row like the others: it holds a number, a sentence, or what stands below it again.
    """
    rows = table_rows(text, suffix)
    header = [cell.strip() for cell in next(rows, [])]
    repeated = any(cell.strip() == name for row in rows for name, cell in zip(header, row, strict=False) if name)
    if repeated or len(set(header)) < len(header) or not all(map(_is_name, header)):
        shown = ", ".join(cell if len(cell) <= NAME else f"{cell[: NAME - 3]}..." for cell in header[:6])
        raise CalibrationError(
            f"{path} has no header: its first line is a row like the others ({shown}), and it would be taken for the "
            "names of the columns; put a line of names on top, such as text and label, or give a .txt with a sample a "
            "line"
        )


def _is_name(cell: str) -> bool:
    """Whether a cell can be the name of a column: some words, and no number or sentence."""
    try:
        float(cell)
    except ValueError:
        return 0 < len(cell) <= NAME and len(cell.split()) <= NAMES and cell[-1] not in ".!?"
    return False


def _index(path: Path, name: str, header: Sequence[str]) -> int:
    if name not in header:
        raise CalibrationError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    return header.index(name)


def json_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The number and the content of each line of JSON that is not blank.

    Raises:
        CalibrationError: if a line is not JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise CalibrationError(f"{path}, line {number}, is not JSON: {error}; give one object a line") from None


def _values(path: Path, number: int, entry: object, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, str):
            keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise CalibrationError(
                f"{path}, line {number}, has no text under {name!r} (it has {keys}); say the key with --column"
            )
        yield value
