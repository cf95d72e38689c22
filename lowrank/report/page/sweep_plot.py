"""The picture of a sweep: loss against size and against time, as an SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 960, 460
LEFT, TOP, WIDE, HIGH, GAP = 64, 64, 390, 320, 92
LETTER, LINE = 6.2, 12
"""Of labels, in pixels."""
SMALLEST = 1e-4
"""Drops below it are drawn as it: the scale is a logarithm."""
SHAPES = {
    "dense": ("circle", "dense"),
    "pruned": ("cross", "magnitude pruning"),
    "student": ("triangle", "half of the layers"),
    "lowrank": ("square", "low rank"),
    "healed": ("diamond", "low rank, healed"),
}
STYLE = """
svg { font: 11px system-ui, sans-serif; color-scheme: light dark; }
text { fill: #333 } .axis { stroke: #999 } .grid { stroke: #9994 } .title { font-size: 13px; font-weight: 600 }
.dense { --c: #555 } .pruned { --c: #a3660a } .student { --c: #b3261e } .lowrank { --c: #0b63b5 }
.healed { --c: #137a3d } .mark { stroke: var(--c); stroke-width: 1.5; fill: none } .front .mark { fill: var(--c) }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .dense { --c: #bbb } .pruned { --c: #e0a040 } .student { --c: #ff8a80 } .lowrank { --c: #6cb6ff }
.healed { --c: #66d08f } }
"""


@dataclass(frozen=True)
class _Axis:
    """A logarithmic scale."""

    low: float
    high: float
    start: float
    length: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, length: float) -> _Axis:
        low, high = min(values), max(values)
        room = (high / low) ** 0.06 if high > low else 1.5
        return cls(low / room, high * room, start, length)

    def at(self, value: float) -> float:
        return self.start + self.length * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round numbers: 1, 2 and 5 times powers of ten, or only these if there are many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(powers) <= 4 else (1,)
        return [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]


def scatter(points: Sequence[Any], metric: str) -> str:
    """Two panels: the drop against bytes, and against milliseconds; up and left is better.

    Args:
        points: see `pipeline.points.Point`.
        metric: of the quality.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d">',
        '<title id="t">Size, time and loss of each point</title>',
        f'<desc id="d">{escape(_told(points))}</desc>',
        f"<style>{STYLE}</style>",
    ]
    drops = _Axis.over([_drawn(p) for p in points] + [SMALLEST * 10], TOP, HIGH)
    label = f"drop of {metric}: up is better"
    parts += _panel(points, lambda p: p.bytes / 1e6, "model.onnx, MB", label, LEFT, drops)
    parts += _panel(points, lambda p: p.ms, "ms in ONNX Runtime", "", LEFT + WIDE + GAP, drops)
    x = LEFT
    for method in dict.fromkeys(point.method for point in points):
        shape, told = SHAPES[method]
        parts.append(f'<g class="{method} front">{_mark(shape, x, 24)}<text x="{x + 10}" y="28">{told}</text></g>')
        x += 34 + int(LETTER * len(told))
    parts.append(f'<text x="{x}" y="28">filled: on the front</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    points: Sequence[Any], measure: Callable[[Any], float], title: str, label: str, left: float, drops: _Axis
) -> list[str]:
    axis = _Axis.over([measure(point) for point in points], left, WIDE)
    bottom = TOP + HIGH
    parts = [f'<rect class="axis" x="{left}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none"/>']
    for tick in axis.ticks():
        x = axis.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in drops.ticks():
        y = drops.at(tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + WIDE}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = left + WIDE / 2
    parts.append(f'<text class="title" x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(title)}</text>')
    parts.append(f'<text class="title" x="{left}" y="{TOP - 10}">{escape(label)}</text>')
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: (not p.on_front, p.drop)):
        x, y = axis.at(measure(point)), drops.at(_drawn(point))
        front = " front" if point.on_front else ""
        told = f"{point.name}: {point.bytes:,} bytes, {point.ms:.2f} ms, drop {point.drop:.4f}"
        text = _label(point.name, x, y, left, taken) if point.on_front else ""
        mark = _mark(SHAPES[point.method][0], x, y)
        parts.append(f'<g class="{point.method}{front}"><title>{escape(told)}</title>{mark}{text}</g>')
    return parts


def _label(name: str, x: float, y: float, left: float, taken: list[tuple[float, float, float]]) -> str:
    """A label beside its mark, moved down until it covers no other."""
    width = LETTER * len(name)
    at = x + 8 if x + 8 + width < left + WIDE else x - 8 - width
    while any(abs(y - other) < LINE and at < end and begin < at + width for begin, end, other in taken):
        y += LINE
    taken.append((at, at + width, y))
    return f'<text x="{at:.1f}" y="{y + 4:.1f}">{escape(name)}</text>'


def _mark(shape: str, x: float, y: float) -> str:
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    paths = {
        "square": "M-4.5-4.5h9v9h-9z",
        "diamond": "M0-6l6 6l-6 6l-6-6z",
        "triangle": "M0-6l5.5 10h-11z",
        "cross": "M-5-5l10 10M5-5l-10 10",
    }
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{paths[shape]}"/>'


def _drawn(point: Any) -> float:
    return max(float(point.drop), SMALLEST)


def _told(points: Sequence[Any]) -> str:
    front = "; ".join(f"{p.name} {p.bytes / 1e6:.2f} MB {p.ms:.2f} ms drop {p.drop:.4f}" for p in points if p.on_front)
    return f"On the front: {front}."
