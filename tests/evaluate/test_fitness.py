"""What a report says of a result that is not fit for use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank.core.analysis import Analysis
from lowrank.core.forecast import Foretold
from lowrank.evaluate.fitness import unfit, warning
from lowrank.results.parts import BudgetResult, Errors, Latency, ModelSizes, Quality, SetQuality, Targets
from lowrank.results.report import Report

FORECAST = (
    Foretold(0.8, {"your data": 0.99, "passages of 256 tokens": 0.93}),
    Foretold(0.5, {"your data": 0.97, "passages of 256 tokens": 0.70}),
    Foretold(0.3, {"your data": 0.92, "passages of 256 tokens": 0.40}),
)


def report_of(own: float, passages: float, kind: Any = "embedding", **parts: Any) -> Report:
    sets = [
        SetQuality(name="your data", origin="own", fidelity=own, samples=100),
        SetQuality(name="passages of 256 tokens", origin="built-in", fidelity=passages, samples=100),
    ]
    worst = min(sets, key=lambda each: each.fidelity)
    quality = Quality(
        kind=kind,
        fidelity=worst.fidelity,
        worst=worst.name,
        sets=sets,
        dense_rounded=Quality(dtype="int8", fidelity=0.98, worst="your data"),
    )
    return Report(
        targets=Targets(params_before=100, params_after=50, keep_ratio=0.5),
        model=ModelSizes(
            params_before=100, params_after=50, bytes_before=400, bytes_after=200, macs_before=100, macs_after=50
        ),
        budget=BudgetResult(kind="params"),
        error=Errors(),
        quality=quality,
        **parts,
    )


def latency(speedup: float, rounded: float | None = None) -> Latency:
    return Latency(
        dense_ms=10.0,
        compressed_ms=10.0 / speedup,
        dense_rounded_ms=rounded,
        dense_rounded_to="int8",
        speedup=speedup,
        threads=1,
        shapes=["1 x 128"],
        dense_onnx_bytes=4_000_000,
        compressed_onnx_bytes=2_000_000,
        dense_rounded_onnx_bytes=1_000_000,
    )


def test_a_good_result_says_nothing() -> None:
    assert unfit(report_of(0.95, 0.91, latency=latency(1.5)), Analysis((), forecast=FORECAST)) == []


OWN = {"calib": "own.txt", "mixed": True, "calibration": {"samples": 1000}}


def test_a_set_below_the_floor_is_named_with_what_would_help() -> None:
    analysis = Analysis((), forecast=FORECAST, settings=OWN)
    lacks, helps = unfit(report_of(0.97, 0.72, latency=latency(1.5)), analysis)
    assert "Not fit for use" in lacks and "passages of 256 tokens" in lacks and "72 %" in lacks
    assert "--budget 0.7" in helps and "--heal" in helps and "more text like passages of 256 tokens in --calib" in helps
    assert "int8 alone, which was measured to reach 98 % in 1.0 MB: `lowrank export MODEL -o FOLDER" in helps
    alone = Analysis((), forecast=FORECAST, settings={**OWN, "mixed": False})
    assert "leaving --calib-only out" in unfit(report_of(0.97, 0.72), alone)[1]


def test_nothing_is_proposed_that_cannot_help() -> None:
    # It fails on its own data, so other text is no help; a graph cannot be healed; int8 is no better.
    analysis = Analysis((), forecast=FORECAST, settings=OWN, source={"kind": "onnx"})
    report = report_of(0.5, 0.4)
    assert report.quality is not None
    report = replace(report, quality=replace(report.quality, dense_rounded=Quality(dtype="int8", fidelity=0.4)))
    _, helps = unfit(report, analysis)
    assert "text like" not in helps and "--heal" not in helps and "int8" not in helps
    # Without data there is nothing to heal on.
    assert "--heal" not in unfit(report_of(0.5, 0.4), Analysis((), forecast=FORECAST))[1]


def test_a_few_samples_do_not_judge() -> None:
    report = report_of(0.97, 0.95)
    assert report.quality is not None
    few = [SetQuality(name="your data", fidelity=0.5, samples=4), *(report.quality.sets or [])[1:]]
    assert unfit(replace(report, quality=replace(report.quality, sets=few)), Analysis(())) == []
    # Values differ by degrees, and four of them tell.
    values = replace(report.quality, kind="values", sets=few)
    assert "your data" in unfit(replace(report, quality=values), Analysis(()))[0]
    random = [SetQuality(name="random inputs", origin="random", fidelity=0.4, samples=16)]
    assert unfit(replace(report, quality=replace(report.quality, sets=random)), Analysis(())) == []


def test_numbers_that_are_no_numbers_are_unfit() -> None:
    lacks = unfit(report_of(float("nan"), 0.95), Analysis((), forecast=FORECAST))[0]
    assert "not finite" in lacks


def test_a_slower_result_says_so_and_names_what_is_faster() -> None:
    (sentence,) = unfit(report_of(0.97, 0.95, latency=latency(0.8, 6.0)), Analysis((), forecast=FORECAST))
    assert "Slower than the dense model: 12.5 ms against 10" in sentence and "int8 takes 6 ms" in sentence


def test_a_budget_that_is_too_small_is_foretold() -> None:
    assert warning(FORECAST, 0.85) is None
    told = warning(FORECAST, 0.3)
    assert told is not None and "40 %" in told and "--budget 0.7" in told
    assert warning((), 0.3) is None
