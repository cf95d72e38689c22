"""Which file a report says to take: the laws of that choice, and its words."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from test_fitness import latency, report_of

from lowrank.core.forecast import FLOOR
from lowrank.evaluate.choice import ALIKE, files_of, which_to_take
from lowrank.results.parts import BudgetResult, Latency
from lowrank.results.report import Report

MS = st.floats(0.1, 100)
BYTES = st.integers(10_000, 10_000_000)
SHARE = st.floats(0, 1)


def report_with(times: Latency, own: float, rounded: float, int8: float) -> Report:
    qualities = [report_of(value, value).quality for value in (own, rounded, int8)]
    assert qualities[0] is not None
    quality = replace(qualities[0], dense_rounded=qualities[1], int8=qualities[2])
    return replace(report_of(own, own, latency=times), quality=quality)


@given(st.tuples(MS, MS, MS, MS), st.tuples(BYTES, BYTES, BYTES, BYTES), st.tuples(SHARE, SHARE, SHARE))
def test_the_file_to_take_is_fit_and_nothing_as_fast_is_smaller(
    ms: tuple[float, ...], nbytes: tuple[int, ...], shares: tuple[float, float, float]
) -> None:
    times = replace(
        latency(1.0),
        dense_ms=ms[0],
        dense_rounded_ms=ms[1],
        compressed_ms=ms[2],
        int8_ms=ms[3],
        dense_onnx_bytes=nbytes[0],
        dense_rounded_onnx_bytes=nbytes[1],
        compressed_onnx_bytes=nbytes[2],
        int8_onnx_bytes=nbytes[3],
    )
    report = report_with(times, *shares)
    said = which_to_take(report)
    assert said is not None
    files = files_of(report)
    named = max(
        (f for f in files if said.split(" (")[0].removesuffix(" model instead").endswith(f.name)),
        key=lambda f: len(f.name),
    )
    assert named.is_fit
    fit = [file for file in files if file.is_fit]
    assert named.ms <= ALIKE * min(file.ms for file in fit)
    assert not any(file.nbytes < named.nbytes and file.ms <= named.ms for file in fit)
    # Whoever reads it sees every file of the other side, too.
    others = [file for file in files if file.name.startswith("dense") != named.name.startswith("dense")]
    assert all(f"{file.name} has {file.figures}" in said for file in others)


def test_the_result_in_eight_bits() -> None:
    times = replace(latency(2.0, rounded=3.0), int8_ms=2.0, int8_onnx_bytes=600_000)
    assert which_to_take(report_with(times, 0.95, 0.98, 0.94)) == (
        "Take model_int8.onnx (0.6 MB, 2 ms, same answers 94 %): the smallest and the fastest of those that give the "
        "same answers in at least 90 %; dense has 4 MB, 10 ms, same answers 100 %, "
        "dense int8 has 1 MB, 3 ms, same answers 98 %."
    )


def test_the_dense_model_in_eight_bits_where_it_is_better() -> None:
    times = replace(latency(2.0, rounded=3.0), int8_ms=4.0, int8_onnx_bytes=600_000)
    said = which_to_take(report_with(times, 0.95, 0.98, 0.94))
    assert said is not None
    assert said.startswith("Take the dense int8 model instead (1 MB, 3 ms, same answers 98 %): it is the fastest of")
    assert said.endswith("`lowrank export MODEL -o FOLDER --quantize int8` makes it.")


def test_a_result_that_is_not_fit_is_not_taken() -> None:
    times = replace(latency(2.0, rounded=12.0), int8_ms=4.0, int8_onnx_bytes=600_000)
    said = which_to_take(report_with(times, FLOOR - 0.01, 0.98, FLOOR - 0.02))
    assert said is not None
    assert said.startswith("Take the dense model instead (4 MB, 10 ms")
    assert "no file of this run gives the same answers in 90 %" in said
    assert "makes it" not in said


def test_a_graph_whose_outputs_are_not_finite_is_not_taken() -> None:
    """Nothing was measured of it then, though the rest was."""
    times = replace(latency(2.0, rounded=3.0), int8_ms=1.0, int8_onnx_bytes=600_000)
    report = report_with(times, 0.95, 0.98, 0.94)
    assert report.quality is not None
    said = which_to_take(replace(report, quality=replace(report.quality, int8=None)))
    assert said is not None and "model_int8.onnx" not in said.split(":")[0]


def test_what_no_result_is_judged_by_decides_nothing() -> None:
    """Random inputs, and sets of a few samples."""
    report = report_with(latency(2.0, rounded=12.0), 0.3, 0.4, 0.2)
    quality = report.quality
    assert quality is not None and quality.sets is not None
    for change in ({"origin": "random"}, {"samples": 2}):
        sets = [replace(row, **change) for row in quality.sets]
        said = which_to_take(replace(report, quality=replace(quality, sets=sets, dense_rounded=None)))
        assert said is not None and said.startswith("Take model.onnx (2 MB, 5 ms):")


def test_tasks_were_measured_on_one_graph_alone() -> None:
    times = replace(latency(2.0, rounded=3.0), int8_ms=1.0, int8_onnx_bytes=600_000)
    report = report_with(times, 0.95, 0.98, 0.94)
    said = which_to_take(replace(report, budget=BudgetResult(kind="drop", limit=0.01, reached=0.0)))
    assert said is not None and "model_int8.onnx" not in said


def test_an_old_report_has_no_type() -> None:
    times = replace(latency(2.0, rounded=3.0), dense_rounded_to=None)
    assert [file.name for file in files_of(report_with(times, 0.95, 0.98, 0.94))][1] == "dense float32"


def test_without_times_nothing_is_said() -> None:
    assert which_to_take(report_of(0.9, 0.9)) is None


def test_what_was_not_measured_is_not_claimed() -> None:
    report = replace(report_of(0.9, 0.9, latency=latency(2.0, rounded=12.0)), quality=None)
    said = which_to_take(report)
    assert said == "Take model.onnx (2 MB, 5 ms): the fastest; dense has 4 MB, 10 ms, dense int8 has 1 MB, 12 ms."
