"""The figures at the top of the page, and the tables of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from lowrank.core.prediction import is_measured
from lowrank.report.fidelity import FIGURES, MEANING, rows_of_sets
from lowrank.report.page.page_data import PageData
from lowrank.report.page.svg import percent
from lowrank.results.parts import Comparison, Latency, Quality
from lowrank.results.report import ONNX_FILE

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Bar:
    """One of several things that are compared."""

    label: str
    value: str
    share: float
    """Of the longest."""
    ours: bool


@dataclass(frozen=True, slots=True)
class Card:
    """One figure."""

    label: str
    value: str
    words: str
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison; a part that was not measured is empty."""

    label: str
    dense: str
    ours: str
    ratio: str


def short(count: float) -> str:
    """A count as people say it.

    Example:
        >>> short(22_713_216), short(950), short(7e9)
        ('22.7 M', '950', '7 B')
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:,.0f}"


def size(nbytes: float) -> str:
    """Bytes as people say them.

    Example:
        >>> size(90_868_000), size(512)
        ('90.9 MB', '512 bytes')
    """
    return f"{short(nbytes).replace(' B', ' G').replace(' k', ' k')}B" if nbytes >= 1e3 else f"{nbytes:,.0f} bytes"


def cards_of(facts: PageData) -> list[Card]:
    """The figures that decide; of an analysis alone those that promise."""
    if facts.report is None:
        return _promises(facts)
    model, latency = facts.report.model, facts.report.latency
    cards = _quality(facts)
    if latency is not None:
        rounded = rounded_name(facts)
        cards.append(_compared(f"Size of {ONNX_FILE}", "onnx_bytes", size, latency, rounded))
        cards.append(_speed(latency, rounded))
    else:
        # Tensors of the dense model, whose graph was not written; of this one the graph, if there is one.
        graph = sum(facts.report.files.get(name, 0) for name in (ONNX_FILE, f"{ONNX_FILE}.data"))
        sizes = (("dense", model.bytes_before), ("compressed", graph or model.bytes_after))
        label = f"Size of {ONNX_FILE}" if graph else "Size of the tensors"
        cards.append(_bars(label, size(sizes[1][1]), _times(*sizes), sizes, size))
    counts = (("dense", model.params_before), ("compressed", model.params_after))
    share = facts.report.targets.keep_ratio
    words = f"{_times(*counts)}; of what was targeted {percent(share)} is kept"
    return [*cards, _bars("Parameters", short(model.params_after), words, counts, short)]


def _quality(facts: PageData) -> list[Card]:
    """How often the answer is the dense model's, on every set; and what was asked for beside that."""
    report = facts.report
    assert report is not None
    cards = [_likeness(facts)]
    for task in report.tasks[:1]:
        scores = (("dense", task.dense), ("compressed", task.compressed))
        words = f"{task.metric} on {task.task}"
        cards.append(_bars("Task", f"{task.compressed:.4f}", words, scores, "{:.4f}".format))
    if len(cards) > 1 and cards[0].value == NOT_MEASURED:
        return cards[1:]
    return cards


def _likeness(facts: PageData) -> Card:
    report = facts.report
    assert report is not None
    quality = report.quality or Quality()
    if quality.fidelity is not None and quality.kind is not None:
        rows = rows_of_sets(quality)
        worst = [row for row in rows if row.is_worst] or rows
        rounded = next((row.dense_rounded for row in worst), None)
        beside = f"; {rounded_name(facts)} there: {percent(rounded)}" if rounded is not None else ""
        words = f"same answers as the dense model {quality.where}: {MEANING[quality.kind]}{beside}"
        bars = tuple(Bar(row.name, percent(row.fidelity), min(max(row.fidelity, 0), 1), row.is_worst) for row in rows)
        return Card("Same answers", percent(quality.fidelity), words, bars)
    rounded_figures = quality.dense_rounded.figures if quality.dense_rounded else {}
    for key, words in FIGURES.items():
        if key in quality.figures:
            words += f", on {quality.data}" if quality.data else ""
            words += f"; {rounded_name(facts)}: {rounded_figures[key]:.4f}" if key in rounded_figures else ""
            return Card("Quality", f"{quality.figures[key]:.4f}", words)
    lost = report.error.relative
    if lost is not None:
        return Card("Quality", f"{lost:.4f}", "relative error of the weights; the model could not be run")
    return Card("Quality", NOT_MEASURED, "the notes say why")


def _compared(label: str, key: str, said: Callable[[float], str], latency: Latency, rounded: str) -> Card:
    names = [
        ("dense", "dense"),
        (rounded or "dense, rounded", "dense_rounded"),
        ("compressed", "compressed"),
        ("compressed int8", "int8"),
    ]
    figures = latency.to_json()
    known = {name: figures[f"{kind}_{key}"] for name, kind in names if f"{kind}_{key}" in figures}
    ours = known["compressed"]
    return _bars(label, said(ours), _times(("dense", known["dense"]), ("compressed", ours)), [*known.items()], said)


def _speed(latency: Latency, rounded: str) -> Card:
    card = _compared("Latency", "ms", lambda ms: f"{ms:.3g} ms", latency, rounded)
    speedup = latency.speedup
    words = (
        f"{speedup:.2f} times as fast as dense"
        if speedup >= 1
        else f"slower than dense: {1 / speedup:.2f} times the time"
    )
    return Card(card.label, card.value, f"{words} ({latency.shapes[0]}, {latency.threads} thread)", card.bars)


def _times(before: tuple[str, float], after: tuple[str, float]) -> str:
    return f"{percent(after[1] / before[1])} of {before[0]}" if before[1] else ""


def _bars(label: str, value: str, words: str, known: Sequence[tuple[str, float]], said: Callable[[float], str]) -> Card:
    longest = max((number for _, number in known), default=0)
    bars = tuple(
        Bar(name, said(number), max(number / longest, 0) if longest > 0 else 0, name.startswith("compressed"))
        for name, number in known
    )
    return Card(label, value, words, bars)


def rounded_name(facts: PageData) -> str:
    """What the dense model beside the compressed one was rounded to; empty where there is none."""
    dtype = facts.report.latency.dense_rounded_to if facts.report and facts.report.latency else None
    return f"dense {dtype}" if dtype else ""


def _promises(facts: PageData) -> list[Card]:
    count = len(facts.weights)
    targeted = f"parameters in {count} weight{'s' * (count != 1)}"
    cards = [Card("Targeted", short(facts.analysis.dense_params), targeted)]
    shares = median(weight.best.marks[1][0] / max(weight.full_rank, 1) for weight in facts.weights)
    metric = (
        "in the metric of the data" if any(weight.activation for weight in facts.weights) else "in the plain metric"
    )
    cards.append(
        Card("Rank for 95 % of the energy", f"{percent(shares)}", f"of the full rank, the median weight, {metric}")
    )
    points = facts.trade_off.points if facts.trade_off else []
    near = min(points, key=lambda point: abs(point.keep - 0.5), default=None)
    if near is not None:
        what = "model's output" if is_measured(facts.analysis) else "weights"
        words = f"relative error of the {what} that is predicted when {percent(near.keep)} is kept"
        cards.append(Card("Predicted error", f"{near.error:.3g}", words))
    return cards


def comparison_of(facts: PageData) -> list[Row]:
    """Dense against compressed."""
    report = facts.report
    if report is None:
        return []
    targets, model, latency = report.targets, report.model, report.latency
    rows = [_row("targeted parameters", targets.params_before, targets.params_after)]
    for key, label in (("params", "all parameters"), ("bytes", "bytes of tensors"), ("macs", "multiply-adds a token")):
        rows.append(_row(label, model[f"{key}_before"], model[f"{key}_after"]))
    if latency is not None:
        figures, how = latency.to_json(), f"{latency.shapes[0]}, {latency.threads} thread"
        for key, label, digits in (("onnx_bytes", "bytes of model.onnx", 0), ("ms", f"ms a run ({how})", 2)):
            dense, ours = figures[f"dense_{key}"], figures[f"compressed_{key}"]
            rows.append(_row(label, dense, ours, digits))
        if latency.predicted_ms is not None:
            rows.append(Row("ms that were predicted", "", f"{latency.predicted_ms:.2f}", ""))
    return rows


def _row(label: str, dense: float, ours: float, digits: int = 0) -> Row:
    return Row(label, f"{dense:,.{digits}f}", f"{ours:,.{digits}f}", f"{ours / dense:.3f}" if dense else "")


def quality_of(facts: PageData) -> list[tuple[str, str]]:
    """All that was measured of the output, and of the graph."""
    report = facts.report
    if report is None:
        return []
    quality = report.quality
    # What was measured on sets has a table of its own.
    told = quality if quality and not quality.sets else None
    rows = [
        (FIGURES.get(name, name.replace("_", " ")), _said(value))
        for name, value in (told.to_json() if told else {}).items()
        if isinstance(value, int | float | str)
    ]
    for name, value in told.dense_rounded.figures.items() if told and told.dense_rounded else ():
        if name in FIGURES:
            rows.append((f"{FIGURES[name]}, {rounded_name(facts)}", _said(value)))
    if quality is None and report.error.relative is not None:
        rows.append(("relative error of the weights", _said(report.error.relative)))
    if report.error.cast_relative is not None:
        rows.append(("error of rounding the factors to their types", _said(report.error.cast_relative)))
    cut = report.cut[-1].quality if report.cut else None
    if cut and cut.fidelity is not None:
        rows.append((f"same answers as the earlier result, {cut.where}", percent(cut.fidelity)))
    for name, value in cut.figures.items() if cut else ():
        if name in FIGURES:
            rows.append((f"{FIGURES[name]}, against the earlier result", _said(value)))
    if report.onnx and report.onnx.rounding_error is not None:
        rows.append((f"relative error by rounding to {report.onnx.dtype}", _said(report.onnx.rounding_error)))
    if report.parity:
        rows.append(("model against its ONNX file, largest difference", f"{report.parity.max_abs:.1e}"))
        if report.parity.noise:
            rows.append(
                ("what other roundings of the model change, of its largest output", f"{report.parity.noise:.1e}")
            )
    return rows


def tasks_of(facts: PageData) -> list[tuple[str, ...]]:
    """What was measured on each task: its name, metric, both scores, the drop with its interval, samples."""

    def drop(value: float, higher: bool) -> str:
        return f"{value:+.4f}" if higher else f"{100 * value:+.2f}\xa0%"

    def row(task: Comparison) -> tuple[str, ...]:
        higher, low, high = task.higher_is_better, task.low, task.high
        interval = "" if low is None or high is None else f"{drop(low, higher)} to {drop(high, higher)}"
        samples = "" if task.samples is None else f"{task.samples:,}"
        scores = (f"{task.dense:.4f}", f"{task.compressed:.4f}", drop(task.drop, higher))
        return (task.task, task.metric, *scores, interval, samples)

    return [row(task) for task in (facts.report.tasks if facts.report else ())]


def shown(table: tuple[list[str], list[tuple[str, ...]]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The heads and lines of a table for the page, on which a number and its unit stay on one line."""
    heads, lines = table
    return heads, [tuple(cell.replace(" %", "\xa0%") for cell in line) for line in lines]


def _said(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"


def summary_of(facts: PageData) -> str:
    """The run in one sentence."""
    report = facts.report
    if report is None:
        return facts.verdict
    model = report.model
    parts = [f"{percent(model.params_after / max(model.params_before, 1))} of the parameters are left"]
    if report.latency is not None:
        parts.append(f"a run takes {percent(1 / report.latency.speedup)} of the time")
    quality = report.quality or Quality()
    if quality.fidelity is not None:
        parts.append(f"the answer is the dense model's in {percent(quality.fidelity)} of cases {quality.where}")
    elif quality.cosine is not None:
        parts.append(f"outputs point the same way as before with a cosine of {quality.cosine:.3f}")
    elif quality.agreement is not None:
        parts.append(f"the most likely output is the same in {percent(quality.agreement)} of cases")
    words = f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{words}."
