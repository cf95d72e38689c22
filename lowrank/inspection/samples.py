"""Calibration data: text, tables and arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from lowrank.artifacts.outside import check_zip
from lowrank.errors import CalibrationError, first_line
from lowrank.inspection.description import Description, quoted, tidy

SUFFIXES = (".txt", ".tsv", ".csv", ".jsonl")


def look_at_text(path: Path) -> Description:
    """A file of samples."""
    from lowrank.calibrate.text import TABLES, check_header, columns_of, read_samples, read_text, suffix_of

    columns = columns_of(path)
    if suffix_of(path) in TABLES:
        check_header(path, read_text(path), suffix_of(path))
    facts: dict[str, Any] = {"columns": tidy(columns)} if columns else {}
    column = columns[0] if columns and "text" not in columns else None
    samples = read_samples(path, ("text" if "text" in columns else column) if columns else None)
    facts |= {"samples": len(samples), "characters": sum(map(len, samples)), "first": tidy(samples[0])}
    plural = len(columns) > 1
    option = " --column COLUMN" if plural else ""
    where = f" in the column {(column or 'text')!r}" if plural else ""
    return Description(
        "samples",
        f"{len(samples):,} samples of text{where}",
        facts=facts,
        next=(f"lowrank analyze MODEL --calib {quoted(path)}{option}",),
    )


def look_at_arrays(path: Path) -> Description:
    """An .npz of a model's inputs, by the headers of its arrays."""
    import numpy as np

    arrays: list[dict[str, Any]] = []
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)  # pyright: ignore[reportArgumentType]
                    old, new = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
                    shape, _, dtype = (old if version == (1, 0) else new)(stream)  # pyright: ignore[reportArgumentType]
                name = member.filename.removesuffix(".npy")
                arrays.append({"name": tidy(name), "dtype": str(dtype)[:40], "shape": list(shape)})
    except Exception as error:
        # Numpy has an error of its own for each thing that can be wrong with a header.
        raise CalibrationError(f"{path} is no whole .npz ({first_line(error)}); save it with numpy.savez") from None
    counts = {each["shape"][0] if each["shape"] else 0 for each in arrays}
    facts: dict[str, Any] = {"samples": counts.pop() if len(counts) == 1 else None, "contents": arrays}
    what = f"{facts['samples']} samples of inputs" if facts["samples"] is not None else "arrays of different lengths"
    return Description(
        "arrays",
        f"{what} ({', '.join(str(each['name']) for each in arrays)})",
        facts=facts,
        next=(f"lowrank analyze MODEL --calib {quoted(path)}",),
    )
