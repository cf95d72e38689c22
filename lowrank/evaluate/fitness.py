"""Whether a result is fit for use, in plain sentences: what it lacks, and what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank.core.analysis import Analysis
from lowrank.core.distance import OutputKind
from lowrank.core.forecast import FLOOR, Foretold, foretold_at, least_keep
from lowrank.results.parts import Latency, Quality, SetQuality
from lowrank.results.report import Report

HEALED = 0.7
"""What fifteen minutes of healing leave of the fidelity that was lost: see docs/benchmarks.md, Healing."""
MINUTES = 15
ANSWER = {
    "logits": "{} of the first choices are the dense model's",
    "embedding": "{} of the ranking of nearest texts is the dense model's",
    "values": "{} of the dense output's variance is explained",
}


def percent(share: float) -> str:
    """A share as people say it.

    Example:
        >>> percent(0.897)
        '89 %'
    """
    # Rounded down: what is below a floor must not look like it.
    return f"{math.floor(100 * share + 1e-9)} %"


def unfit(report: Report, analysis: Analysis) -> list[str]:
    """What makes a result unfit for use, a sentence or two for each; empty where nothing does.

    Args:
        report: of the result, with what was measured.
        analysis: of the dense model, with what it foretold.
    """
    sentences: list[str] = []
    quality = report.quality
    failed = [row for row in (quality.sets if quality else None) or () if not row.fidelity >= FLOOR]
    if quality is not None and failed:
        sentences.append(_lacks(quality, failed))
        sentences.append(f"What would help: {'; '.join(_helps(report, quality, analysis, failed))}.")
    if report.latency is not None and report.latency.speedup < 1:
        sentences.append(_slow(report.latency))
    return sentences


def _lacks(quality: Quality, failed: Sequence[SetQuality]) -> str:
    failed = sorted(failed, key=lambda row: row.fidelity if math.isfinite(row.fidelity) else -1)
    worst, others = failed[0], failed[1:]
    words = ANSWER[quality.kind or "values"]
    said = (
        words.format(f"only {percent(worst.fidelity)}") if math.isfinite(worst.fidelity) else "the output is not finite"
    )
    more = ", ".join(f"{percent(row.fidelity)} on {row.name}" for row in others if math.isfinite(row.fidelity))
    return (
        f"Not fit for use as it is: on {worst.name} {said}"
        + (f" ({more})" if more else "")
        + (f"; {percent(FLOOR)} is the least.")
    )


def _helps(report: Report, quality: Quality, analysis: Analysis, failed: Sequence[SetQuality]) -> list[str]:
    """What can be done, that with the surest effect first."""
    helps: list[str] = []
    keep = report.targets.keep_ratio
    here = foretold_at(analysis.forecast, keep)
    rows = {row.name: row for row in quality.sets or ()}
    if here is not None:
        scales = {
            name: (1 - rows[name].fidelity) / max(1 - value, 1e-3)
            for name, value in here.fidelity.items()
            if name in rows and math.isfinite(rows[name].fidelity)
        }
        enough = least_keep(analysis.forecast, scales)
        helps.append(
            f"--budget {enough:g}, which is predicted to reach {percent(FLOOR)} on every set"
            if enough is not None and enough > keep
            else f"no budget of this kind is predicted to reach {percent(FLOOR)}"
        )
    lowest = min((row.fidelity for row in failed if math.isfinite(row.fidelity)), default=0.0)
    after = 1 - HEALED * (1 - lowest)
    if not report.healing:
        helps.append(
            f"--heal {MINUTES}, which is predicted to bring {percent(lowest)} to about {percent(after)}"
            + ("" if after >= FLOOR else ", not enough by itself")
        )
    names = [row.name for row in failed]
    own = next(iter(rows), None)
    if own is not None and own not in names:
        helps.append(f"calibration text like {' and '.join(names)}, which {own} is not (see --calib)")
    plain = quality.dense_rounded
    if plain is not None and plain.fidelity is not None:
        size = report.latency and report.latency.dense_rounded_onnx_bytes
        helps.append(
            f"the dense model in {plain.dtype} alone, which was measured to reach {percent(plain.fidelity)}"
            + (f" in {size / 1e6:.1f} MB" if size else "")
        )
    return helps


def _slow(times: Latency) -> str:
    sentence = (
        f"Slower than the dense model: {times.compressed_ms:.3g} ms against {times.dense_ms:.3g} "
        f"({times.shapes[0]}, {times.threads} thread)."
    )
    plain = times.dense_rounded_ms
    if plain is not None and plain < times.dense_ms:
        return f"{sentence} The dense model in {times.dense_rounded_to} takes {plain:.3g} ms."
    return f"{sentence} A smaller --budget, or --latency, which counts milliseconds of this machine, would help."


def warning(forecast: Sequence[Foretold], keep: float, kind: OutputKind) -> str | None:
    """What to know before a model of a keep ratio is made; None where nothing is foretold, or nothing bad."""
    point = foretold_at(forecast, keep)
    if point is None or point.fidelity[point.worst] >= FLOOR:
        return None
    enough = least_keep(forecast)
    lowest = ANSWER[kind].format(percent(point.fidelity[point.worst]))
    return (
        f"as the analysis foretold, at a keep ratio of {keep:.2g} {lowest} on {point.worst}, before refit and healing; "
        + (
            f"--budget {enough:g} is predicted to reach {percent(FLOOR)} without either"
            if enough is not None
            else f"no budget is predicted to reach {percent(FLOOR)} without either"
        )
    )
