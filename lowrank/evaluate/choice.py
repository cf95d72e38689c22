"""Which of the files to ship: those of a run, the dense model, and the dense model in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank.core.forecast import FLOOR
from lowrank.core.share import percent
from lowrank.edge.target import export_command
from lowrank.evaluate.fitness import judged_sets
from lowrank.results.parts import Quality
from lowrank.results.report import INT8_FILE, ONNX_FILE, Report

ALIKE = 1.05
"""Times within this ratio are taken to be the same: the smaller file is then the better one."""


@dataclass(frozen=True, slots=True)
class ShippedFile:
    """A file that one could ship."""

    name: str
    nbytes: int
    ms: float
    fidelity: float | None
    """On the worst of the sets that a result is judged by; None where nothing was measured."""

    @property
    def is_fit(self) -> bool:
        """Whether it gives the dense model's answers often enough, as far as that is known."""
        return self.fidelity is None or self.fidelity >= FLOOR

    @property
    def figures(self) -> str:
        """What it has to offer, in words."""
        answers = f", same answers {percent(self.fidelity)}" if self.fidelity is not None else ""
        return f"{self.nbytes / 1e6:.3g} MB, {self.ms:.3g} ms{answers}"


def files_of(report: Report) -> list[ShippedFile]:
    """The files that were timed: the dense model and the dense model in fewer bits, then those of the run."""
    times, quality = report.latency, report.quality
    if times is None:
        return []
    ours = _worst(quality)

    def fidelity(other: Quality | None) -> float | None:
        """Where the rest was measured, what could not be measured is not fit."""
        found = _worst(other)
        return found if ours is None or found is not None else 0.0

    files = [ShippedFile("dense", times.dense_onnx_bytes, times.dense_ms, None if ours is None else 1.0)]
    if times.dense_rounded_ms is not None and times.dense_rounded_onnx_bytes is not None:
        dtype = times.dense_rounded_to or report.target.dtype
        judged = fidelity(quality and quality.dense_rounded)
        files.append(ShippedFile(f"dense {dtype}", times.dense_rounded_onnx_bytes, times.dense_rounded_ms, judged))
    files.append(ShippedFile(ONNX_FILE, times.compressed_onnx_bytes, times.compressed_ms, ours))
    if times.int8_ms is not None and times.int8_onnx_bytes is not None:
        judged = fidelity(quality and quality.int8)
        files.append(ShippedFile(INT8_FILE, times.int8_onnx_bytes, times.int8_ms, judged))
    return files


def _worst(quality: Quality | None) -> float | None:
    """The least fidelity on the sets that a result is judged by; None where there is none."""
    return min((row.fidelity for row in judged_sets(quality)), default=None)


def which_to_take(report: Report) -> str | None:
    """A sentence on which file to ship, and why; None where nothing was timed.

    Of the files that give the dense model's answers often enough, it is the fastest; of those that are as fast, the
    smallest.
    """
    # What the graph in eight bits loses on tasks was not measured.
    files = [file for file in files_of(report) if file.name != INT8_FILE or report.budget.kind != "drop"]
    if not files:
        return None
    fit = [file for file in files if file.is_fit]
    fastest = min(file.ms for file in fit)
    best = min((file for file in fit if file.ms <= ALIKE * fastest), key=lambda file: file.nbytes)
    # What the rest is held against: the dense model as one would ship it without this tool.
    plain = [file for file in files if file.name.startswith("dense")]
    if best.name == ONNX_FILE or best.name == INT8_FILE:
        return f"Take {best.name} ({best.figures}): {_reasons(best, fit)}; {_listed(plain)}."
    ours = [file for file in files if not file.name.startswith("dense")]
    unfit = [file for file in ours if not file.is_fit]
    reason = (
        f"no file of this run gives the same answers in {percent(FLOOR)}"
        if len(unfit) == len(ours)
        else f"it is {_reasons(best, fit)}"
    )
    dtype = "" if best.name == "dense" else str(report.latency and report.latency.dense_rounded_to)
    how = f"; {export_command(dtype)} makes it" if dtype else ""
    return f"Take the {best.name} model instead ({best.figures}): {reason}; {_listed(ours)}{how}."


def _reasons(best: ShippedFile, among: list[ShippedFile]) -> str:
    smallest = min(file.nbytes for file in among) == best.nbytes
    fastest = min(file.ms for file in among) == best.ms
    words = [*(["the smallest"] if smallest else []), "the fastest" if fastest else "as fast as any"]
    least = "" if best.fidelity is None else f" of those that give the same answers in at least {percent(FLOOR)}"
    return " and ".join(words) + least


def _listed(files: list[ShippedFile]) -> str:
    return ", ".join(f"{file.name} has {file.figures}" for file in files)
