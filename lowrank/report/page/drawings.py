"""The plots of the page, each from its data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from lowrank.report.page.spectra import ENERGIES, Line, ShownWeight
from lowrank.report.page.svg import Scale, element, mark, percent, picture, polyline
from lowrank.results.forecast import Prediction, TradeOff

PANEL = (200, 124)
CHART = (380, 250)
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40
"""Margins of a chart."""
FLOORS = (1e-2, 1e-6)
"""The lowest singular value that is drawn is between these, as a share of the largest."""


def floor_of(weights: Sequence[ShownWeight]) -> float:
    """The bottom of the axis that all spectra share: most stay above it for most of their ranks."""
    late = sorted(weight.best.values[int(0.9 * len(weight.ranks))] for weight in weights)
    at = late[len(late) // 10] if late else 1e-3
    return min(max(10.0 ** math.floor(math.log10(max(at, FLOORS[1]))), FLOORS[1]), FLOORS[0])


def spectrum(weight: ShownWeight, floor: float) -> Markup:
    """Singular values over ranks: both metrics, the energy marks, what is kept."""
    width, height = PANEL
    x = Scale(0, weight.full_rank, 6, width - 6)
    y = Scale(floor, 1, height - 16, 12, logarithmic=True)
    base = height - 16
    parts: list[str] = []
    chosen = weight.choice.rank if weight.choice else None
    if chosen is not None:
        parts.append(element("rect", class_="kept", x=x(0), y=12, width=max(x(chosen) - x(0), 0.5), height=base - 12))
    for tick in y.ticks:
        at = y(tick)
        parts.append(element("line", class_="grid", x1=x(0), x2=x(weight.full_rank), y1=at, y2=at))
    at = x(weight.break_even)
    parts.append(element("line", class_="even", x1=at, x2=at, y1=12, y2=base))
    lines = [("plain", weight.plain), ("data", weight.activation)]
    for name, line in lines:
        if line is not None:
            points = [(x(rank), y(value)) for rank, value in zip(weight.ranks, line.values, strict=True)]
            parts.append(polyline(points, class_=f"line {name}"))
    for name, line in lines:
        if line is not None:
            parts += [mark(x(rank), y(value), i, class_=f"mark {name}") for i, (rank, value) in enumerate(line.marks)]
    if chosen is not None:
        at = x(chosen)
        parts.append(element("line", class_="chosen", x1=at, x2=at, y1=12, y2=base))
        end = "start" if at < 24 else "end" if at > width - 24 else "middle"
        parts.append(element("text", str(chosen), class_="strong", x=at, y=9, text_anchor=end))
    parts.append(element("text", "1", x=x(0), y=height - 3))
    parts.append(element("text", str(weight.full_rank), x=x(weight.full_rank), y=height - 3, text_anchor="end"))
    parts.append(element("line", class_="cursor", x1=0, x2=0, y1=12, y2=base, visibility="hidden"))
    return picture(width, height, f"Spectrum of {weight.name}", described(weight), parts, "spectrum")


def described(weight: ShownWeight) -> str:
    """A spectrum in words."""

    def ranks(line: Line) -> str:
        words = [f"{percent(energy)} at rank {rank}" for energy, (rank, _) in zip(ENERGIES, line.marks, strict=True)]
        return ", ".join(words)

    parts = [f"{weight.rows} x {weight.cols}", f"energy in the plain metric: {ranks(weight.plain)}"]
    if weight.activation is not None:
        parts.append(f"in the metric of the data: {ranks(weight.activation)}")
    parts.append(f"break-even rank {weight.break_even}")
    if weight.choice is not None:
        parts.append(f"chosen: {weight.choice.words}")
    return "; ".join(parts)


def key_of_spectra(with_data: bool, with_choice: bool) -> list[tuple[Markup, str]]:
    """What the lines and marks of spectra mean: little pictures, each with its words."""

    def sample(*parts: Markup) -> Markup:
        return element("svg", parts, class_="key spectrum", viewBox="0 0 26 14", aria_hidden="true")

    line = {"x1": 1, "x2": 25, "y1": 7, "y2": 7}
    up = {"x1": 13, "x2": 13, "y1": 0, "y2": 14}
    samples = [(sample(element("line", class_="line data", **line)), "in the metric of the data")] if with_data else []
    samples.append((sample(element("line", class_="line plain", **line)), "plain singular values"))
    name = "data" if with_data else "plain"
    samples += [
        (sample(mark(13.0, 7.0, i, class_=f"mark {name}")), f"{percent(energy)} of the energy")
        for i, energy in enumerate(ENERGIES)
    ]
    if with_choice:
        area = element("rect", class_="kept", x=1, y=0, width=12, height=14)
        samples.append((sample(area, element("line", class_="chosen", **up)), "chosen rank, and what it keeps"))
    samples.append((sample(element("line", class_="even", **up)), "two factors are smaller left of this"))
    return samples


def _axes(x: Scale, y: Scale, across: str, up: str, ticks: tuple[Sequence[str], Sequence[str]]) -> list[Markup]:
    """Grid, ticks and names of both axes."""
    width, height = CHART
    parts: list[Markup] = []
    for value, label in zip(y.ticks, ticks[1], strict=True):
        parts.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=y(value), y2=y(value)))
        parts.append(element("text", label, x=x.start - 6, y=y(value) + 4, text_anchor="end"))
    for value, label in zip(x.ticks, ticks[0], strict=True):
        parts.append(element("line", class_="tick", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4))
        parts.append(element("text", label, x=x(value), y=y.start + 17, text_anchor="middle"))
    parts.append(element("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    parts.append(element("text", across, class_="name", x=width - RIGHT, y=height - 5, text_anchor="end"))
    parts.append(element("text", up, class_="name", x=2, y=TOP - 4))
    return parts


def _scales(across: Sequence[float], up: Sequence[float], logarithmic: bool = False) -> tuple[Scale, Scale]:
    width, height = CHART
    x = Scale(*_padded(across), LEFT, width - RIGHT)
    if logarithmic:
        low, high = max(min(up), 1e-9), max(*up, 1e-9)
        bottom, top = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return x, Scale(bottom, max(top, bottom * 10), height - BOTTOM, TOP + 6, logarithmic=True)
    return x, Scale(*_padded(up), height - BOTTOM, TOP + 6)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis with some room around the values."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def trade_off(predicted: TradeOff, chosen: Prediction | None) -> Markup | None:
    """What every budget is predicted to lose; None if none could be met."""
    points = predicted.points
    if not points:
        return None
    x = Scale(0, 1, LEFT, CHART[0] - RIGHT)
    shown = [*points, *([chosen] if chosen else [])]
    _, y = _scales([0, 1], [max(point.error, 1e-6) for point in shown], logarithmic=True)
    ticks = ([percent(value) for value in x.ticks], [f"{value:g}" for value in y.ticks])
    what = "output" if predicted.of_output else "weights"
    parts: list[str] = [*_axes(x, y, "parameters kept", f"predicted relative error of the {what}", ticks)]
    parts.append(polyline([(x(p.keep), y(p.error)) for p in points], class_="line data"))
    for point in points:
        tip = f"keep {percent(point.keep)}: error {point.error:.3g}"
        parts.append(mark(x(point.keep), y(point.error), 0, class_="mark data", data_tip=tip))
    words = [f"keeping {percent(p.keep)} loses {p.error:.3g}" for p in points]
    if chosen is not None:
        at, up = x(chosen.keep), y(chosen.error)
        parts.append(element("line", class_="chosen", x1=at, x2=at, y1=up, y2=y.start))
        label = f"chosen: {percent(chosen.keep)}"
        parts.append(mark(at, up, 0, 6.0, class_="point", data_tip=f"{label}, error {chosen.error:.3g}"))
        side, shift = ("end", -10) if at > CHART[0] / 2 and up < 60 else ("start", 10)
        parts.append(element("text", label, class_="strong", x=at + shift, y=up - 8, text_anchor=side))
        words.append(f"the chosen plan keeps {percent(chosen.keep)} and loses {chosen.error:.3g}")
    return picture(*CHART, "Predicted error of every budget", "; ".join(words), parts, "chart")


def healing(curve: Sequence[tuple[float, float]], before: float, unit: str) -> Markup | None:
    """Held-out loss while a model was healed."""
    sound = [(work, loss) for work, loss in curve if math.isfinite(work) and math.isfinite(loss) and loss > 0]
    if not sound or not before > 0:
        return None
    x = Scale(0, max(work for work, _ in sound) or 1.0, LEFT, CHART[0] - RIGHT)
    _, y = _scales([0, 1], [before, *(loss for _, loss in sound)])
    ticks = ([f"{value:g}" for value in x.ticks], [f"{value:g}" for value in y.ticks])
    parts: list[str] = [*_axes(x, y, unit, "held-out loss", ticks)]
    parts.append(element("line", class_="even", x1=x.start, x2=x.end, y1=y(before), y2=y(before)))
    parts.append(element("text", "before", x=x.end, y=y(before) - 5, text_anchor="end"))
    parts.append(polyline([(x(work), y(loss)) for work, loss in sound], class_="line data"))
    for work, loss in sound:
        parts.append(mark(x(work), y(loss), 0, class_="mark data", data_tip=f"{work:.3g} {unit}: {loss:.4g}"))
    words = f"from {before:.4g} before to {sound[-1][1]:.4g} after {sound[-1][0]:.3g} {unit}"
    return picture(*CHART, "Held-out loss while healing", words, parts, "chart")
