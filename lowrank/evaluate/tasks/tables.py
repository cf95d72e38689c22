"""Tables with named columns that someone else wrote."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path

from lowrank.calibrate.text import TABLES, check_header, read_text, suffix_of, table_rows
from lowrank.errors import TaskError


def read_columns(spec: str, path: Path, wanted: list[tuple[str, ...]]) -> list[list[str]]:
    """Some columns of a `.tsv` or `.csv` file (`.gz` too), by the names in its first line.

    Args:
        spec: the task, for errors.
        path: the file.
        wanted: for each column the names that it may have, the first that is there being taken.

    Raises:
        CalibrationError: if it cannot be read.
        TaskError: if it is no table, lacks a column, or a row lacks a cell.
    """
    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise TaskError(f"--task {spec}: {path} must be .tsv or .csv, with a line of column names first")
    text = read_text(path)
    rows = table_rows(text, suffix)
    try:
        header = [name.strip() for name in next(rows, [])]
        if any(not set(names) & set(header) for names in wanted):
            check_header(path, text, suffix)
        picked = [_place(spec, path, names, header) for names in wanted]
        columns: list[list[str]] = [[] for _ in wanted]
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(picked):
                raise TaskError(
                    f"--task {spec}: {path} has {len(row)} cells in row {len(columns[0]) + 2}, and {len(header)} "
                    "columns; repair that row"
                )
            for column, place in zip(columns, picked, strict=True):
                column.append(row[place].strip())
    except csv.Error as error:
        raise TaskError(f"--task {spec}: {path} cannot be read as a table ({error}); save it as UTF-8 CSV") from None
    return columns


def _place(spec: str, path: Path, names: tuple[str, ...], header: list[str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    near = difflib.get_close_matches(names[0], header, 1)
    hint = f"; is it {near[0]!r}? Rename it" if near else "; name it in the first line"
    shown = ", ".join(header[:12]) or "nothing"
    raise TaskError(f"--task {spec}: {path} has no column {' or '.join(names)} (it has {shown}){hint}")
