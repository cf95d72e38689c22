"""Inline SVG: what a plot is drawn with. Every text is escaped here, and nothing refers to another file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lowrank.core.share import percent as printed
from lowrank.report.terminal.terminal import harmless

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Scale:
    """From numbers to places along one axis."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number; those outside are put at the ends."""
        low, high, value = (self._seen(v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def _seen(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.logarithmic else value

    @property
    def ticks(self) -> list[float]:
        """Round numbers within it: some four, or powers of ten, with 2 and 5 times each where those are few."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = [10.0**power for power in range(first, last + 1)]
            if len(powers) > 3:
                return powers
            between = [factor * value for value in (self.low / 10, *powers) for factor in (1, 2, 5)]
            return sorted({float(f"{v:.3g}") for v in between if self.low * 0.999 <= v <= self.high * 1.001})
        return steps(self.low, self.high)


def steps(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between two.

    Example:
        >>> steps(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def power(value: float) -> str:
    """A power of ten as one writes it.

    Example:
        >>> power(0.001), power(1.0)
        ('10⁻³', '1')
    """
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def percent(share: float) -> str:
    """A share as it is printed everywhere, on one line.

    Example:
        >>> percent(0.5), percent(0.4979)
        ('50\\xa0%', '49.7\\xa0%')
    """
    return printed(share).replace(" ", "\xa0")


def element(tag: str, content: str | Iterable[str] = "", /, **attributes: object) -> Markup:
    """One element. Content that is no Markup is text; attributes that are None are left out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(map(text, [content] if isinstance(content, str) else content))
    return Markup(f"<{tag}{named}/>") if not inner and tag != "text" else Markup(f"<{tag}{named}>{inner}</{tag}>")


def text(content: str) -> Markup:
    """A text from anywhere, harmless in a page."""
    return content if isinstance(content, Markup) else escape(harmless(content))


def _value(value: object) -> Markup:
    return text(number(value) if isinstance(value, float) else str(value))


def number(value: float) -> str:
    """Short: a tenth of a pixel is enough.

    Example:
        >>> number(12.04), number(0.5)
        ('12', '0.5')
    """
    return f"{value:.1f}".removesuffix(".0")


def polyline(points: Sequence[tuple[float, float]], **attributes: object) -> Markup:
    """A line through points."""
    return element("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), **attributes)


def picture(width: int, height: int, title: str, described: str, content: Iterable[str], class_: str) -> Markup:
    """A whole plot, with its name and what it says for those who do not see it."""
    words = [element("title", title), element("desc", described)]
    box = f"0 0 {width} {height}"
    return element("svg", [*words, *content], class_=class_, viewBox=box, role="img", aria_label=title)


def mark(x: float, y: float, shape: int, size: float = 3.2, **attributes: object) -> Markup:
    """A dot, a square or a triangle: shapes tell what colours alone would not."""
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size, **attributes)
    if shape == 1:
        s = size * 0.9
        return element("rect", x=x - s, y=y - s, width=2 * s, height=2 * s, **attributes)
    corners = [(x, y - size * 1.2), (x + size * 1.1, y + size * 0.8), (x - size * 1.1, y + size * 0.8)]
    points = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
    return element("polygon", points=points, **attributes)
