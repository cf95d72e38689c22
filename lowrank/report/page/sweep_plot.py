"""The picture of a sweep: the drop of quality over size and over time, for the page and as a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from lowrank.report.page.svg import Scale, element, picture
from lowrank.results.sweep import Point

WIDTH, HEIGHT = 470, 390
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 26, 344
"""The frame of a panel, the right one from the right."""
LETTER, LINE = 6.2, 12
"""Of labels, in pixels."""
SMALLEST = 1e-4
"""Drops below it are drawn as it: the scale is a logarithm."""
METHODS = {
    "dense": ("circle", "dense"),
    "pruned": ("cross", "magnitude pruning"),
    "student": ("triangle", "half of the layers"),
    "lowrank": ("square", "low rank"),
    "healed": ("diamond", "low rank, healed"),
}
"""The shape of each method's marks, and what it is called."""
PATHS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "diamond": "M0-6l6 6l-6 6l-6-6z",
    "triangle": "M0-6l5.5 10h-11z",
    "cross": "M-5-5l10 10M5-5l-10 10",
}
STYLE = """
.sweep { font: 11px system-ui, sans-serif; color-scheme: light dark; overflow: visible }
.sweep text { fill: #333 } .sweep .frame { stroke: #999; fill: none } .sweep .grid { stroke: #9994 }
.sweep .title { font-size: 13px; font-weight: 600 }
.sweep .dense { --c: #555 } .sweep .pruned { --c: #a3660a } .sweep .student { --c: #b3261e }
.sweep .lowrank { --c: #0b63b5 } .sweep .healed { --c: #137a3d }
.sweep .point { stroke: var(--c); stroke-width: 1.5; fill: none } .sweep .front .point { fill: var(--c) }
@media (prefers-color-scheme: dark) {
.sweep text { fill: #ddd } .sweep .dense { --c: #bbb } .sweep .pruned { --c: #e0a040 } .sweep .student { --c: #ff8a80 }
.sweep .lowrank { --c: #6cb6ff } .sweep .healed { --c: #66d08f } }
"""


def panels(points: Sequence[Point], metric: str) -> tuple[Markup, Markup]:
    """The drop over bytes, and over milliseconds; up and left is better.

    Args:
        points: of the sweep, with the dense one.
        metric: whose drop it is.
    """
    label = f"drop of {metric}: up is better"
    return (
        _panel(points, lambda point: point.bytes / 1e6, "model.onnx, MB", label),
        _panel(points, lambda point: point.ms, "ms in ONNX Runtime", label),
    )


def legend(points: Sequence[Point]) -> list[tuple[Markup, str]]:
    """What the marks mean: the mark of each method, with its words."""
    methods = dict.fromkeys(point.method for point in points)
    return [
        (element("g", [_mark(METHODS[method][0], 8, 8)], class_=f"{method} front"), METHODS[method][1])
        for method in methods
    ]


def sweep_file(points: Sequence[Point], metric: str) -> str:
    """Both panels with their legend as a file that needs nothing else."""
    parts: list[Markup] = [element("style", Markup(STYLE))]
    x = LEFT
    for mark, words in [*legend(points), (Markup(""), "filled: on the front")]:
        parts += [element("g", [mark], transform=f"translate({x} 6)"), element("text", words, x=x + 18, y=18)]
        x += 40 + int(LETTER * len(words))
    for i, panel in enumerate(panels(points, metric)):
        parts.append(element("g", [panel], transform=f"translate({i * WIDTH} 32)"))
    size = {"width": 2 * WIDTH, "height": HEIGHT + 32}
    return f"{element('svg', parts, xmlns='http://www.w3.org/2000/svg', class_='sweep', **size)}\n"


def _panel(points: Sequence[Point], measure: Callable[[Point], float], title: str, label: str) -> Markup:
    across = _scale([measure(point) for point in points], LEFT, WIDTH - RIGHT)
    up = _scale([*map(_drop, points), SMALLEST * 10], TOP, BOTTOM)
    parts = [element("rect", class_="frame", x=LEFT, y=TOP, width=WIDTH - RIGHT - LEFT, height=BOTTOM - TOP)]
    for value in across.ticks:
        x = across(value)
        parts.append(element("line", class_="grid", x1=x, y1=TOP, x2=x, y2=BOTTOM))
        parts.append(element("text", f"{value:g}", x=x, y=BOTTOM + 16, text_anchor="middle"))
    for value in up.ticks:
        y = up(value)
        parts.append(element("line", class_="grid", x1=LEFT, y1=y, x2=WIDTH - RIGHT, y2=y))
        parts.append(element("text", f"{value:g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", title, class_="title", x=middle, y=BOTTOM + 36, text_anchor="middle"))
    parts.append(element("text", label, class_="title", x=LEFT, y=TOP - 8))
    labels: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (not point.on_front, point.drop)):
        x, y = across(measure(point)), up(_drop(point))
        inner = [element("title", _words(point)), _mark(METHODS[point.method][0], x, y)]
        if point.on_front:
            inner.append(_label(point.name, x, y, labels))
        parts.append(element("g", inner, class_=f"{point.method}{' front' if point.on_front else ''}"))
    front = "; ".join(_words(point) for point in points if point.on_front)
    return picture(WIDTH, HEIGHT, f"Drop of quality over {title}", f"On the front: {front}.", parts, "sweep")


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic axis with some room around the values."""
    values = [min(max(value, 1e-12), 1e12) for value in values]
    low, high = min(values), max(values)
    room = (high / low) ** 0.06 if high > low else 1.5
    return Scale(low / room, high * room, start, end, logarithmic=True)


def _label(name: str, x: float, y: float, labels: list[tuple[float, float, float]]) -> Markup:
    """A name beside its mark, moved down until it covers no other one."""
    width = LETTER * len(name)
    left = x + 8 if x + 8 + width < WIDTH - RIGHT else x - 8 - width
    while any(abs(y - other) < LINE and left < end and begin < left + width for begin, end, other in labels):
        y += LINE
    labels.append((left, left + width, y))
    return element("text", name, x=left, y=y + 4)


def _mark(shape: str, x: float, y: float) -> Markup:
    return element("path", class_="point", transform=f"translate({x:.1f} {y:.1f})", d=PATHS[shape])


def _drop(point: Point) -> float:
    return max(point.drop, SMALLEST)


def _words(point: Point) -> str:
    return f"{point.name}: {point.bytes:,} bytes, {point.ms:.2f} ms, drop {point.drop:.4f}"
