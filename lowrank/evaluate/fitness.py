"""Whether a result is fit for use, in plain sentences: what it lacks, and what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank.core.analysis import Analysis
from lowrank.core.forecast import FLOOR, Foretold, foretold_at, least_keep
from lowrank.core.share import percent
from lowrank.edge.target import export_command
from lowrank.results.parts import Latency, Quality, SetQuality
from lowrank.results.report import Report

HEALED = 0.9
"""What fifteen minutes of healing leave of the fidelity that was lost on the worst set. Measured: of all-MiniLM-L6-v2
0.84 at a keep ratio of 0.3 and 0.97 at 0.5, of rxnmapper at 0.5 in five minutes 0.86."""
MINUTES = 15
FEWEST, FEWEST_OF_VALUES = 8, 3
"""Samples of a set that are enough to judge by; where each has values that differ by degrees, some are."""
LEAST_LOSS = 1e-2
"""A loss that is foretold is known no better than this."""
UNTRAINED = ("onnx", "checkpoint")
"""Kinds of models that cannot be healed, or not all of them."""
ANSWER = {
    "logits": "{} of the first choices are the dense model's",
    "embedding": "{} of the ranking of nearest texts is the dense model's",
    "values": "{} of the dense output's variance is explained",
    "choices": "{} of the whole numbers that it gives are the dense model's",
}


def unfit(report: Report, analysis: Analysis) -> list[str]:
    """What makes a result unfit for use, a sentence or two for each; empty where nothing does.

    Sets of a few samples, and random inputs, are shown and never judged: one sample would decide.

    Args:
        report: of the result, with what was measured.
        analysis: of the dense model, with what it foretold.
    """
    sentences: list[str] = []
    quality = report.quality
    sets = judged_sets(quality)
    failed = [row for row in sets if not row.fidelity >= FLOOR]
    if quality is not None and failed:
        sentences.append(_lacks(quality, failed))
        helps = _helps(report, quality, analysis, failed)
        sentences += [f"What would help: {'; '.join(helps)}."] if helps else []
    if report.latency is not None and report.latency.speedup < 1:
        sentences.append(_slow(report.latency))
    return sentences


def judged_sets(quality: Quality | None) -> list[SetQuality]:
    """The sets that a result is judged by: those of enough samples, and not of random numbers."""
    return [row for row in (quality and quality.sets) or () if row.origin != "random" and _is_enough(row, quality)]


def _is_enough(row: SetQuality, quality: Quality | None) -> bool:
    kind = row.kind or (quality and quality.kind)
    return row.samples >= (FEWEST_OF_VALUES if kind == "values" else FEWEST)


def _lacks(quality: Quality, failed: Sequence[SetQuality]) -> str:
    worst, *others = sorted(failed, key=lambda row: row.order)
    words = ANSWER[worst.kind or quality.kind or "values"]
    said = (
        words.format(f"only {percent(worst.fidelity)}") if math.isfinite(worst.fidelity) else "the output is not finite"
    )
    more = ", ".join(f"{percent(row.fidelity)} on {row.name}" for row in others if math.isfinite(row.fidelity))
    return (
        f"Not fit for use as it is: on {worst.name} {said}"
        + (f" in {worst.output}" if worst.output else "")
        + (f" ({more})" if more else "")
        + (f"; {percent(FLOOR)} is the least.")
    )


def _helps(report: Report, quality: Quality, analysis: Analysis, failed: Sequence[SetQuality]) -> list[str]:
    """What can be done, that with the surest effect first."""
    lowest = min((row.fidelity for row in failed if math.isfinite(row.fidelity)), default=0.0)
    helps = [_more(report, quality, analysis), _healing(report, analysis, lowest), _text(analysis, failed)]
    plain = quality.dense_rounded
    if plain is not None and plain.dtype and plain.fidelity is not None and plain.fidelity >= FLOOR:
        size = report.latency and report.latency.dense_rounded_onnx_bytes
        helps.append(
            f"the dense model in {plain.dtype} alone, which was measured to reach {percent(plain.fidelity)}"
            + (f" in {size / 1e6:.1f} MB" if size else "")
            + f": {export_command(plain.dtype)}"
        )
    return [each for each in helps if each is not None]


def _more(report: Report, quality: Quality, analysis: Analysis) -> str | None:
    """The budget that is predicted to be enough, from what was foretold and what was measured of this one."""
    keep = report.targets.keep_ratio
    here = foretold_at(analysis.forecast, keep)
    if here is None:
        return None
    rows = {row.name: row.fidelity for row in quality.sets or () if math.isfinite(row.fidelity)}
    scales = {
        name: (1 - rows[name]) / max(1 - value, LEAST_LOSS) for name, value in here.fidelity.items() if name in rows
    }
    enough = least_keep(analysis.forecast, scales)
    if enough is not None and enough > keep:
        return f"--budget {enough:g}, which is predicted to reach {percent(FLOOR)} on every set"
    return f"no budget of this kind is predicted to reach {percent(FLOOR)}" if enough is None else None


def _healing(report: Report, analysis: Analysis, lowest: float) -> str | None:
    """What healing is predicted to reach, of a model that can be trained and was not."""
    if report.healing or analysis.source.get("kind") in UNTRAINED or not analysis.settings.get("calibration"):
        return None
    after = 1 - HEALED * (1 - lowest)
    return f"--heal {MINUTES}, which is predicted to bring {percent(lowest)} to about {percent(after)}" + (
        "" if after >= FLOOR else ", not enough by itself"
    )


def _text(analysis: Analysis, failed: Sequence[SetQuality]) -> str | None:
    """Other text to calibrate on, where the user's own is good and another is not."""
    if not isinstance(analysis.settings.get("calib"), str) or any(row.origin != "built-in" for row in failed):
        return None
    if not analysis.settings.get("mixed", True):
        return "leaving --calib-only out, which adds built-in text of all lengths"
    return f"more text like {' and '.join(row.name for row in failed)} in --calib"


def _slow(times: Latency) -> str:
    sentence = (
        f"Slower than the dense model: {times.compressed_ms:.3g} ms against {times.dense_ms:.3g} "
        f"({times.shapes[0]}, {times.threads} thread)."
    )
    plain = times.dense_rounded_ms
    if plain is not None and plain < times.dense_ms:
        how = export_command(str(times.dense_rounded_to))
        return f"{sentence} The dense model in {times.dense_rounded_to} takes {plain:.3g} ms: {how}."
    return sentence


def warning(forecast: Sequence[Foretold], keep: float) -> str | None:
    """What to know before a model of a keep ratio is made; None where nothing is foretold, or nothing bad."""
    point = foretold_at(forecast, keep)
    if point is None or point.fidelity[point.worst] >= FLOOR:
        return None
    enough = least_keep(forecast)
    lowest = ANSWER[point.kind].format(percent(point.fidelity[point.worst]))
    return (
        f"as the analysis foretold, at a keep ratio of {keep:.2g} {lowest} on {point.worst}, before refit and healing; "
        + (
            f"--budget {enough:g} is predicted to reach {percent(FLOOR)} without either"
            if enough is not None
            else f"no budget is predicted to reach {percent(FLOOR)} without either"
        )
    )
