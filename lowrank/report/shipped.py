"""The files that one could ship, side by side: those of a run, and the dense model as one would ship it without."""

from __future__ import annotations

from lowrank.core.share import percent
from lowrank.evaluate.choice import files_of
from lowrank.results.report import Report


def columns_of_files(report: Report) -> tuple[list[str], list[tuple[str, ...]]]:
    """A table of all files that were timed: the heads of its columns, and a line of cells for each; no lines where
    nothing was timed."""
    files, times = files_of(report), report.latency
    if times is None:
        return [], []
    dense = files[0]
    heads = ["file", "bytes", "of dense", f"ms ({times.shapes[0]}, {times.threads} thread)", "times as fast"]
    lines = [
        (
            file.name,
            f"{file.nbytes:,}",
            f"{file.nbytes / dense.nbytes:.3f}",
            f"{file.ms:.2f}",
            f"{dense.ms / file.ms:.2f}",
            *((percent(file.fidelity) if file.fidelity is not None else "",) if dense.fidelity is not None else ()),
        )
        for file in files
    ]
    return [*heads, *(["same answers"] if dense.fidelity is not None else [])], lines
